# Heddle's images.
#
#   docker build --target controller -t heddle/controller:0.1.0 .
#   docker build --target proxy      -t heddle/proxy:0.1.0 .
#
# tests/cluster/image makes the same images without Docker and reads the lines FROM, COPY --from, USER,
# ENTRYPOINT and those that install a package here: keep each on one line.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked -p controller -p cli -p agent && mkdir /out && \
    cp target/release/heddle-controller target/release/heddle target/release/heddle-agent /out/

# The control plane.
FROM gcr.io/distroless/cc-debian12:nonroot AS controller
COPY --from=build /out/heddle-controller /usr/local/bin/heddle-controller
COPY --from=build /out/heddle /usr/local/bin/heddle
USER 65532
ENTRYPOINT ["/usr/local/bin/heddle-controller"]

FROM envoyproxy/envoy:v1.40.0 AS envoy

# A stock Envoy, and the agent that looks after it: beside workloads and in gateways. The agent captures
# connections by nft.
FROM debian:12-slim AS proxy
RUN apt-get update && apt-get install --yes --no-install-recommends nftables && rm -rf /var/lib/apt/lists/*
COPY --from=envoy /usr/local/bin/envoy /usr/local/bin/envoy
COPY --from=build /out/heddle-agent /usr/local/bin/heddle-agent
COPY --from=build /out/heddle /usr/local/bin/heddle
USER 65532
ENTRYPOINT ["/usr/local/bin/heddle-agent"]
