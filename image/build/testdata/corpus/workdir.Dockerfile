FROM debian:12
WORKDIR /a
WORKDIR b/c
RUN pwd > pwd
WORKDIR /tmp
