FROM debian:12
RUN useradd -m other && su other -c "touch /home/other/x"
