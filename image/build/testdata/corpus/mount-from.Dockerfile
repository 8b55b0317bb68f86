# syntax=docker/dockerfile:1
FROM debian:12 AS tools
RUN echo tool > /tool
FROM debian:12
RUN --mount=type=bind,from=tools,source=/tool,target=/mnt/tool cat /mnt/tool > /used
