FROM debian:12
ENTRYPOINT exec top -b
