FROM debian:12
COPY *.py requirements*.txt /app/
COPY src/ /app/
