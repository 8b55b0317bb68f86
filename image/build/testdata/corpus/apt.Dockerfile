FROM debian:12
RUN apt-get update && apt-get install -y --no-install-recommends tree && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log
