ARG BASE=debian:12
FROM $BASE
ARG NAME=world
ENV GREETING="hello $NAME"
RUN echo $GREETING > /greeting
