# Fairlead's image: two static binaries and nothing else. For another architecture, let the builder run on it:
# docker buildx build --platform linux/amd64,linux/arm64 .
#
# `cargo xtask image` makes the same image without Docker.
ARG RUST=1.95
FROM rust:$RUST-bookworm AS build
WORKDIR /src
COPY . .
RUN make image

FROM scratch
COPY --from=build /src/target/image/root /
ENV PATH=/bin
CMD ["fairlead-proxy", "--help"]
