FROM debian:12
RUN mkdir /data && echo x > /data/x
VOLUME /data
VOLUME ["/logs", "/cache"]
