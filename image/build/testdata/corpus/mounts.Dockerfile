# syntax=docker/dockerfile:1
FROM debian:12
RUN --mount=type=cache,target=/cache echo x > /cache/x
RUN --mount=type=bind,target=/ctx cp /ctx/app.py /copied
RUN --mount=type=tmpfs,target=/t touch /t/x
