# syntax=docker/dockerfile:1
FROM debian:12
RUN <<EOF
set -e
echo one > /one
echo two > /two
EOF
COPY <<EOF /etc/conf
key=value
EOF
