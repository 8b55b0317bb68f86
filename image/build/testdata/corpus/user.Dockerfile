FROM debian:12
RUN groupadd -g 900 team && useradd -u 901 -g team -m dev
USER dev
WORKDIR /home/dev
RUN id -u > uid; id -g > gid; touch mine
