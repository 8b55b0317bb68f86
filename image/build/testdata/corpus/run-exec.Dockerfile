FROM debian:12
RUN ["sh", "-c", "echo exec > /exec"]
