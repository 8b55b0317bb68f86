FROM debian:12
USER 1000:1001
RUN touch /tmp/mine
