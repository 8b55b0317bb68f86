FROM debian:12
WORKDIR /app
COPY requirements.txt .
RUN python3 -c "print(6*7)" > answer
COPY app.py .
ENV PYTHONUNBUFFERED=1
CMD ["python3", "app.py"]
