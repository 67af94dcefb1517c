# docker build -t classifier . && docker run --rm classifier
# Runs on the CPU of a Jetson or any other computer; the Jetson's own decoder needs an image of NVIDIA's as BASE.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3-gi python3-venv gir1.2-gstreamer-1.0 \
    gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-libav \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /kit
COPY . .
RUN python3 -m venv --system-site-packages /venv && /venv/bin/pip install --no-cache-dir -r requirements.txt \
    && useradd --system classifier
USER classifier
ENTRYPOINT ["/venv/bin/python", "pipeline.py"]
