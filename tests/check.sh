#!/usr/bin/env bash
# Everything that must hold before a change lands: format, lints, documentation, tests.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo fmt --all --check
cargo clippy --workspace --all-targets -- -D warnings
RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items
cargo test --workspace
