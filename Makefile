# Thin names over `cargo xtask`, which says what each does.
.PHONY: setup build image lint test soak demo demo-down bench kind kernels

# Cargo itself needs a linker before it can run anything of ours.
setup:
	@command -v cc >/dev/null || { echo "==> installing a linker"; apt-get update -qq; apt-get install -y -qq gcc libc6-dev; }
	@cargo xtask setup

build: setup
	@cargo xtask build --release

image: setup
	@cargo xtask image

lint: setup
	@cargo xtask lint

test: setup
	@cargo xtask test

# As in make soak ARGS="--minutes 2 --seed 7".
soak: setup
	@cargo xtask soak $(ARGS)

demo: setup
	@cargo xtask demo $(if $(KEEP),--keep)

demo-down:
	@cargo xtask demo-down

bench: setup
	@cargo xtask bench -- $(ARGS)

kind: setup
	@cargo xtask kind $(if $(KEEP),--keep)

# Not part of the tests: it fetches kernels and emulates machines for them, which takes an hour.
kernels: setup
	@cargo xtask kernels $(ARGS)
