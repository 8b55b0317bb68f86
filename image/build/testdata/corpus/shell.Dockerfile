FROM debian:12
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN echo $BASH_VERSION | grep -q . && echo ok > /shell
CMD echo hi
