FROM debian:12
ENV HOMEDIR=/opt/app
WORKDIR $HOMEDIR/bin
RUN touch here
