#!/usr/bin/env bash
# The RUSTDOC of `cargo test --doc`: before it runs the examples, it checks the documentation's links and lints with the crates
# that cargo has built for them. `cargo doc` would check every dependency a second time.
set -euo pipefail
run=("$@")
lint=()
while [ $# -gt 0 ]; do
    case $1 in
    --test) ;;
    --test-run-directory) shift ;;
    *) lint+=("$1") ;;
    esac
    shift
done
rustdoc "${lint[@]}" -D warnings --document-private-items --out-dir "${CARGO_TARGET_DIR:-target}/doc"
exec rustdoc "${run[@]}"
