FROM debian:12
ADD files.tar.gz /unpacked/
COPY files.tar.gz /packed/
