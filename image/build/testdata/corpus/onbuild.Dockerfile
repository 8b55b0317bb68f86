FROM debian:12 AS parent
ONBUILD RUN echo triggered > /onbuild
ONBUILD COPY app.py /onbuild.py
FROM parent
RUN cat /onbuild
