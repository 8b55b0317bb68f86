FROM debian:12
HEALTHCHECK --interval=5s --timeout=3s --retries=4 CMD test -e /ok
