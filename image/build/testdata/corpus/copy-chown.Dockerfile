FROM debian:12
RUN useradd -u 1234 -m app
COPY --chown=app:app src /home/app/src
COPY --chown=7:8 app.py /x
