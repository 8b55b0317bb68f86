FROM debian:12
CMD echo hello $USER
