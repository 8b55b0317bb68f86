FROM debian:12
COPY ["app.py", "/with space/app.py"]
