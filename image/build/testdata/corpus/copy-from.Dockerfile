FROM debian:12 AS build
RUN mkdir /out && echo built > /out/artifact && chmod 711 /out/artifact && chown 5:6 /out/artifact
FROM debian:12
COPY --from=build /out/ /opt/
