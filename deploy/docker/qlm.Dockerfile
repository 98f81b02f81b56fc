# Gateway, solver, or all of QLM with simulated GPUs, without any CUDA. Built from the top of the repository:
#   docker build -f deploy/docker/qlm.Dockerfile -t qlm .
#   docker run qlm gateway --config /etc/qlm/config.yaml
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN python -m venv /opt/qlm \
    && /opt/qlm/bin/pip install --no-cache-dir --disable-pip-version-check ".[gurobi,otel]" \
    && NUMBA_CACHE_DIR=/opt/qlm/numba /opt/qlm/bin/python -m solver.backends.warm_up

FROM python:3.12.11-slim-bookworm
LABEL org.opencontainers.image.title="QLM" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 qlm \
    && useradd --uid 10001 --gid qlm --no-create-home --home-dir /var/lib/qlm qlm \
    && install -d -o qlm -g qlm /var/lib/qlm /etc/qlm
COPY --from=build --chown=qlm:qlm /opt/qlm /opt/qlm
ENV PATH=/opt/qlm/bin:$PATH \
    NUMBA_CACHE_DIR=/opt/qlm/numba \
    PYTHONUNBUFFERED=1 \
    QLM_HEALTH_URL=http://127.0.0.1:7400/health
WORKDIR /var/lib/qlm
USER 10001:10001
EXPOSE 7400 7401 7402 7403 7491
# Of a solver: QLM_HEALTH_URL=http://127.0.0.1:7491/metrics
HEALTHCHECK --interval=10s --timeout=4s --start-period=40s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(os.environ['QLM_HEALTH_URL'], timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["qlm"]
CMD ["up"]
