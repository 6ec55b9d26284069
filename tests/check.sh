#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, documentation, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
# clippy compiles our crates in rustc's place, so one build serves lints and tests: `cargo clippy` would compile every
# dependency a second time.
export RUSTC_WORKSPACE_WRAPPER=clippy-driver CLIPPY_ARGS='-Dwarnings__CLIPPY_HACKERY__'
cargo build --workspace --all-targets
RUSTDOC=$PWD/tests/rustdoc.sh cargo test --workspace --doc
# `--bins` would run the fuzz targets too, which never end.
cargo test --workspace --tests
