# Serves a checkpoint's handler over HTTP, as a user without rights and on a file system that cannot be written:
#   docker build -t ncpl . && docker run --read-only --tmpfs /tmp -p 127.0.0.1:8080:8080 ncpl
# Another checkpoint: docker build --build-arg CHECKPOINT=outputs/my-model .
FROM python:3.11-slim

WORKDIR /app
# The versions that the package was tested with; for the much smaller CPU build of torch:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=INDEX_OF_CPU_WHEELS .
ARG PIP_EXTRA_INDEX_URL=
COPY pyproject.toml /app/
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; names = 'numpy', 'safetensors', 'torch', 'transformers'; print(*(n for n in p['dependencies'] if n.startswith(tuple(f'{name}>' for name in names))), *p['optional-dependencies']['serve'], sep='\n')" > requirements.txt \
    && pip install --no-cache-dir --requirement requirements.txt

ARG CHECKPOINT=ncpl/checkpoints/ncpl-mini
COPY *.py /app/
COPY ${CHECKPOINT} /app/${CHECKPOINT}

RUN useradd --uid 10001 --create-home forecaster
USER 10001
# Everything is in the image: nothing is looked up. A checkpoint whose network speaks has its code copied to HF_HOME.
ENV HF_HUB_OFFLINE=1 HF_HOME=/tmp/huggingface PYTHONDONTWRITEBYTECODE=1 CHECKPOINT=${CHECKPOINT}

EXPOSE 8080
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health')"]
# exec: the server itself is told to stop, and finishes what is under way.
CMD exec python /app/handler.py /app/${CHECKPOINT} 8080 --host 0.0.0.0
