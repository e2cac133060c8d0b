# The image of migrate, worker and web. Built by `docker compose build`.
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY lrsearch lrsearch
RUN python -m venv /opt/lrsearch \
    && /opt/lrsearch/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[gpu,lrfree,postgresql,ray]"

FROM python:3.11.14-slim-bookworm
COPY --from=build /opt/lrsearch /opt/lrsearch
# New volumes take over the owner of the folder that they are mounted on.
RUN groupadd --gid 10001 lrsearch \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin lrsearch \
    && install -d -o lrsearch -g lrsearch /work /data
ENV PATH=/opt/lrsearch/bin:$PATH
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["lrsearch"]
CMD ["--help"]
