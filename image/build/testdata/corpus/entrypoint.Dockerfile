FROM debian:12
COPY run.sh /
ENTRYPOINT ["/run.sh"]
CMD ["a", "b"]
