FROM debian:12
ENV A=1 B="two words"
ENV C=$A-$B D=${E:-default}
RUN echo "$A $B $C $D" > /env
