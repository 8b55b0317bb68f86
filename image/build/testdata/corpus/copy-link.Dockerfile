# syntax=docker/dockerfile:1
FROM debian:12
RUN mkdir /dir && echo x > /dir/x
COPY --link src /dir/src
