FROM debian:12
RUN set -eux; mkdir -p /srv/app; touch /srv/app/one; ln -s one /srv/app/two; ln /srv/app/one /srv/app/three
RUN rm /srv/app/three && rm -rf /usr/share/doc
