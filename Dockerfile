# bam-convert in a small image: docker build -t bam-convert --build-arg COMMIT=$(git rev-parse HEAD) .
# Run it on the folder you are in: docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" bam-convert inspect model
FROM rust:1.95-slim-bookworm AS build
# Some crates have sources in C.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ARG COMMIT=
ENV BAM_CONVERT_BUILD_COMMIT=$COMMIT
WORKDIR /source
COPY . .
RUN cargo install --path . --locked --root /installed

FROM debian:bookworm-slim
# The Hub needs the certificates of the system.
RUN apt-get update && apt-get install --yes --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/*
COPY --from=build /installed/bin/bam-convert /usr/local/bin/
COPY LICENSE-APACHE LICENSE-MIT /usr/share/doc/bam-convert/
RUN useradd --uid 1000 --create-home bam
# A number, by which Kubernetes sees that this is not root (runAsNonRoot).
USER 1000:1000
WORKDIR /work
# The home of another user (--user) may not exist.
ENV XDG_CACHE_HOME=/tmp/cache
ENTRYPOINT ["bam-convert"]
