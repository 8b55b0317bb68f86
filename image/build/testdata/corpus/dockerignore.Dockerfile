FROM debian:12
COPY . /ctx
