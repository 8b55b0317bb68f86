FROM debian:12
LABEL org.example.a=1 org.example.b="two words"
LABEL multi="x\
y"
