FROM debian:12
RUN touch /s /g /t && chmod 4755 /s && chmod 2755 /g && mkdir /sticky && chmod 1777 /sticky
RUN chown 33:33 /t && chmod 0 /t && mkfifo /fifo
