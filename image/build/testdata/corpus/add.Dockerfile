FROM debian:12
ADD app.py /added/
ADD src /added/src
