FROM debian:12
RUN head -c 100000 /dev/zero > /big
RUN truncate -s 10 /big && echo more >> /etc/motd
