FROM debian:12
RUN mkdir "/sp ace" && touch "/sp ace/ü" "/sp ace/-dash" /.hidden
