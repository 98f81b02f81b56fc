# An agent beside the vLLM that it starts. QLM lives in an environment of its own, so neither changes what the other needs.
# Built from the top of the repository:
#   docker build -f deploy/docker/agent.Dockerfile -t qlm-agent .
#   docker run --gpus device=0 qlm-agent agent --name gpu-0 --config /etc/qlm/config.yaml
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir /wheels .

FROM vllm/vllm-openai:v0.11.0
LABEL org.opencontainers.image.title="QLM agent" \
      org.opencontainers.image.licenses="Apache-2.0"
# hadolint ignore=DL3002
USER 0
COPY --from=build /wheels /wheels
RUN python3 -m venv /opt/qlm \
    && /opt/qlm/bin/pip install --no-cache-dir --disable-pip-version-check /wheels/*.whl \
    && groupadd --gid 10001 qlm \
    && useradd --uid 10001 --gid qlm --create-home --home-dir /var/lib/qlm qlm \
    && install -d -o qlm -g qlm /var/lib/qlm/models /etc/qlm
# vLLM is found as `vllm` by its own path, QLM as /opt/qlm/bin/qlm.
ENV HF_HOME=/var/lib/qlm/models \
    PYTHONUNBUFFERED=1 \
    QLM_HEALTH_URL=http://127.0.0.1:7492/metrics
WORKDIR /var/lib/qlm
USER 10001:10001
EXPOSE 7492
HEALTHCHECK --interval=10s --timeout=4s --start-period=600s --retries=3 \
    CMD ["/opt/qlm/bin/python", "-c", "import os, urllib.request as u; u.urlopen(os.environ['QLM_HEALTH_URL'], timeout=3)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/qlm/bin/qlm"]
CMD ["agent", "--help"]
