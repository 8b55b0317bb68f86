FROM debian:12
EXPOSE 80 443/tcp 53/udp
