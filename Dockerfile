# syntax=docker/dockerfile:1
# The service in production form: no embedded PostgreSQL, no build tools, no root.
# For a reproducible image name the base by digest: --build-arg PYTHON_IMAGE=python:3.13-slim-bookworm@sha256:...
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/confide/venv
COPY requirements.lock ./
# Only wheels: nothing of a dependency runs while the image is made.
RUN python -m pip --python /opt/confide/venv/bin/python install \
      --no-input --require-hashes --only-binary :all: -r requirements.lock
# The checkout's own layout is kept, because the migrations stand beside the package; a .pth file makes it importable.
COPY app /opt/confide/app
COPY migrations /opt/confide/migrations
COPY LICENSE /opt/confide/LICENSE
RUN site=$(/opt/confide/venv/bin/python -c 'import site; print(site.getsitepackages()[0])') \
 && echo /opt/confide > "$site/confide.pth" \
 && printf '%s\n' '#!/opt/confide/venv/bin/python' 'import sys' 'from app.__main__ import main' 'sys.exit(main())' \
      > /opt/confide/venv/bin/confide \
 && chmod 0755 /opt/confide/venv/bin/confide \
 && /opt/confide/venv/bin/python -m compileall -q /opt/confide/app /opt/confide/migrations

FROM ${PYTHON_IMAGE}
# The base's own pip isn't needed any more, and what isn't there can't be misused.
RUN python -m pip uninstall -q -y --root-user-action=ignore pip \
 && groupadd --system --gid 10001 confide \
 && useradd --system --uid 10001 --gid confide --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin confide \
 && install -d -o confide -g confide -m 0700 /var/lib/confide
COPY --from=build /opt/confide /opt/confide
ENV PATH=/opt/confide/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    CONFIDE_STATE_DIR=/var/lib/confide \
    CONFIDE_HOST=0.0.0.0 \
    CONFIDE_PORT=8080
# Runs with a read-only root file system. What must outlive the container (a local provider's key file in development,
# the sealer's signed checkpoints) goes to this volume.
WORKDIR /var/lib/confide
VOLUME ["/var/lib/confide"]
USER 10001:10001
EXPOSE 8080
# SIGTERM drains: requests in flight end, then the process does.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f'http://127.0.0.1:{os.environ[\"CONFIDE_PORT\"]}/healthz', timeout=2).read()"]
ENTRYPOINT ["confide"]
CMD ["serve"]
