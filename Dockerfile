# Two stages: the first installs into a virtual environment, the second carries only that. No RUN line needs root, and
# each works in any folder: tests/integration/test_container.py runs them as they stand here.

FROM python:3.11-slim-bookworm AS build
WORKDIR /opt/tocsin

# The dependencies are a layer of their own: a change of the code does not install them again.
# No pip in the venvs: the image installs nothing after it is built.
COPY requirements.lock requirements-build.lock ./
RUN python -m venv --without-pip venv \
    && python -m pip --python venv/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
        --requirement requirements.lock \
    && python -m venv --without-pip tools \
    && python -m pip --python tools/bin/python install --no-cache-dir --only-binary :all: --require-hashes \
        --requirement requirements-build.lock

COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY clients/python/tocsin ./clients/python/tocsin
RUN tools/bin/python -m hatchling build --target wheel \
    && python -m pip --python venv/bin/python install --no-cache-dir --no-index --no-deps dist/*.whl


FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="Tocsin" \
      org.opencontainers.image.description="Self-hosted real-time broadcast" \
      org.opencontainers.image.licenses="MIT"
WORKDIR /opt/tocsin
COPY --from=build --chown=10001:10001 /opt/tocsin/venv ./venv

# `tocsin` and `python` are those of the venv.
ENV PATH=/opt/tocsin/venv/bin:$PATH
# The bytecode came with the install; a read-only root has no place for more.
ENV PYTHONDONTWRITEBYTECODE=1
# A log line leaves at once, also the last one before a crash.
ENV PYTHONUNBUFFERED=1
# Inside a container, loopback would be heard by nobody. Who may reach it is decided where the port is published.
ENV TOCSIN_HOST=0.0.0.0

# Numeric, so that an orchestrator can see that it is not root.
USER 10001:10001
EXPOSE 8000
# Readiness, not liveness: a worker that has lost Redis hears nothing, whatever its process looks like.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('TOCSIN_PORT', '8000')), timeout=2); c.request('GET', '/readyz'); sys.exit(c.getresponse().status != 200)"]
# Exec form: SIGTERM reaches the server itself, which then drains.
CMD ["tocsin", "serve"]
