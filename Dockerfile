# Fairlead's image: two static binaries and nothing else. For another architecture, let the builder run on it:
# docker buildx build --platform linux/amd64,linux/arm64 .
#
# `cargo xtask image` makes the same image without Docker.
FROM debian:12 AS build
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends binutils ca-certificates curl gcc libc6-dev make
ENV PATH=/root/.cargo/bin:$PATH
ARG RUST=1.95.0
RUN curl --proto '=https' --tlsv1.2 -fsS https://sh.rustup.rs | sh -s -- -y --profile minimal --default-toolchain $RUST
WORKDIR /src
COPY . .
RUN make image

FROM scratch
COPY --from=build /src/target/image/root /
ENV PATH=/bin
CMD ["fairlead-proxy", "--help"]
