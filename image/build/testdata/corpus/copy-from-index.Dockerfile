FROM debian:12
RUN echo zero > /zero
FROM debian:12
COPY --from=0 /zero /zero
