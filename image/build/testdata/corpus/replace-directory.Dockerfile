FROM debian:12
RUN mkdir /d && touch /d/old
RUN rm -rf /d && mkdir /d && touch /d/new
