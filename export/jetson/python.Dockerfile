# docker build -t classifier . && docker run --rm classifier
# Runs on the CPU of a Jetson or any other computer.
FROM python:3.11-slim-bookworm
WORKDIR /kit
COPY . .
RUN pip install --no-cache-dir -r requirements.txt && useradd --system classifier
USER classifier
ENTRYPOINT ["python", "classify.py"]
