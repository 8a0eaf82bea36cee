# Two images from one file: `api` serves HTTP and sweeps, without PyTorch; `worker` computes.
#   docker build --target api -t dragqueue-api .
#   docker build --target worker -t dragqueue-worker .
# The worker takes PyTorch from the index in TORCH_INDEX: CPU builds by default, CUDA with .../whl/cu130.
FROM python:3.13.9-slim-trixie AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 dragqueue
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY api api
COPY cli cli
COPY client client
COPY embedded embedded
COPY engine engine
COPY jobs jobs
COPY migrations migrations
COPY worker worker
COPY checkpoints checkpoints
# tini hands SIGTERM to the process alone, so that a Celery parent can let its child finish
ENTRYPOINT ["tini", "--", "dragqueue"]

FROM base AS api
RUN pip install --editable ./client --editable '.[c2pa]' --constraint constraints.txt
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
CMD ["api", "--host", "0.0.0.0"]

FROM base AS worker
# with one of glibc's arenas per thread a worker's memory creeps up for hours; large tensors fault less often on huge pages; threads
# that spin for each other long waste shared cores
ENV MALLOC_ARENA_MAX=2 THP_MEM_ALLOC_ENABLE=1 GOMP_SPINCOUNT=10000
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --index-url "$TORCH_INDEX" torch==2.13.0 \
    && pip install --editable ./client --editable '.[engine]' --constraint constraints.txt \
    && install --directory --owner=10001 /scratch
USER 10001
CMD ["worker"]
