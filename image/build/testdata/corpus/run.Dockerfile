FROM debian:12
RUN echo hello > /hello && chmod 600 /hello
