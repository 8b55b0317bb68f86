FROM debian:12 AS build
RUN echo data > /data
FROM scratch
COPY --from=build /data /data
ENV ONLY=this
CMD ["/data"]
