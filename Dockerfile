# Serves a checkpoint's handler over HTTP: docker build -t ncpl . && docker run -p 8080:8080 ncpl
# Another checkpoint: docker build --build-arg CHECKPOINT=outputs/my-model .
FROM python:3.11-slim

# For the much smaller CPU build of torch: docker build --build-arg TORCH="torch --index-url INDEX_OF_CPU_WHEELS" .
ARG TORCH="torch>=2.6"
RUN pip install --no-cache-dir ${TORCH} && pip install --no-cache-dir "transformers>=5.23,<5.25"

WORKDIR /app
ARG CHECKPOINT=ncpl/checkpoints/ncpl-mini
COPY *.py /app/
# The same place as in the repository: an embedded checkpoint links to the code.
COPY ${CHECKPOINT} /app/${CHECKPOINT}

RUN useradd --create-home forecaster
USER forecaster
# Everything is in the image: nothing is looked up, and the checkpoint's code is copied to a place that can be written.
ENV HF_HUB_OFFLINE=1 HF_HOME=/tmp/huggingface CHECKPOINT=${CHECKPOINT}

EXPOSE 8080
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health')"]
CMD python /app/handler.py /app/${CHECKPOINT} 8080
