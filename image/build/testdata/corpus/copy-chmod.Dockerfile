# syntax=docker/dockerfile:1
FROM debian:12
COPY --chmod=640 app.py /app.py
