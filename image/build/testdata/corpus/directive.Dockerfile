# escape=`
FROM debian:12
RUN echo one `
  && echo two > /two
