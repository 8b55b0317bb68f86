FROM debian:12
RUN git init -q /repo && cd /repo && git config user.email a@b && git config user.name n && echo x > f && git add f && rm -rf .git
