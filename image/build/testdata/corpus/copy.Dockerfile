FROM debian:12
COPY app.py run.sh /app/
COPY src /app/src
