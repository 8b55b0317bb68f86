FROM debian:12
RUN mkdir /l && cd /l && ln -s /etc/passwd abs && ln -s ../nowhere rel && ln -s . self
