# vmmd's image: the daemon, `vmmctl` and the demo, without pip, compiler or sources. It runs as a user of its own and
# writes to /run/vmmd alone, so the root file system can be read-only.
#
#   docker build --tag vmmd .
#   docker run --rm --read-only --cap-drop ALL --tmpfs /run/vmmd:uid=65532,gid=65532,mode=0700 vmmd
#
# PYTHON_IMAGE is any image with Debian's tools and Python 3.11 or newer. PIP_INDEX_URL is a package index other than
# pip's own; every file that comes from it is checked against the locks' hashes.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG PIP_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# The dependencies change seldom, so they are a layer of their own below the sources.
COPY build.lock runtime.lock ./
RUN python3 -m venv /build \
 && /build/bin/pip install --quiet --require-hashes --requirement build.lock \
 && python3 -m venv --without-pip /opt/vmmd \
 && /build/bin/pip --python /opt/vmmd/bin/python install --quiet --require-hashes --requirement runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY vmmd vmmd
COPY client client
RUN /build/bin/hatchling build --target wheel --directory /dist \
 && /build/bin/pip --python /opt/vmmd/bin/python install --quiet --no-deps --no-index /dist/*.whl
# The compiled engine's object, made here for any processor of the architecture: a container starts without compiling.
RUN /opt/vmmd/bin/python -c 'import pathlib; from vmmd.isa.native import Native; Native(pathlib.Path("/cache/vmmd"))'

FROM ${PYTHON_IMAGE}
RUN groupadd --gid 65532 vmmd \
 && useradd --uid 65532 --gid vmmd --home-dir /run/vmmd --no-create-home --shell /usr/sbin/nologin vmmd \
 && install --directory --owner=vmmd --group=vmmd --mode=0700 /run/vmmd
COPY --from=build /opt/vmmd /opt/vmmd
# Machine code is loaded only if it belongs to who runs it.
COPY --from=build --chown=65532:65532 /cache /var/cache
ENV PATH=/opt/vmmd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_RUNTIME_DIR=/run/vmmd \
    XDG_STATE_HOME=/run \
    XDG_CACHE_HOME=/var/cache
USER 65532:65532
WORKDIR /run/vmmd
VOLUME /run/vmmd
# The page alone, by Python's library: a check that starts the whole client would cost half a second of CPU each time.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["python3", "-IS", "-c", \
 "import socket as s; c = s.socket(s.AF_UNIX); c.connect('/run/vmmd/vmmd.sock'); \
c.sendall(b'GET /healthz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n'); raise SystemExit(b' 200 ' not in c.recv(64))"]
# PID 1 is the daemon itself, and SIGTERM drains it.
ENTRYPOINT ["vmmd"]
CMD ["serve"]
