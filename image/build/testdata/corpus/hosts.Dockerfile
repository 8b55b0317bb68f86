FROM debian:12
RUN test -s /etc/hosts && test -f /etc/resolv.conf && touch /run/kept
