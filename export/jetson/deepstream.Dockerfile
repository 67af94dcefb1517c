# docker build -t classifier . && docker run --rm --runtime nvidia classifier
# BASE: NVIDIA's DeepStream image for your JetPack (JETSON.md); 7.1 is that of JetPack 6.1 and 6.2.
ARG BASE=nvcr.io/nvidia/deepstream:7.1-samples-multiarch
FROM ${BASE}
WORKDIR /kit
COPY . .
CMD ["sh", "smoke.sh"]
