#!/usr/bin/env bash
# Builds the wheel and the archive of this machine, installs the wheel into a fresh environment, and works with it. Needs the
# registries of crates and of Python packages, and the time of a release build. With BINARY=target/debug/bam-convert it packs
# that file, in seconds. The environment with maturin is made below the folder named first (default: target/live) and kept.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ -n "${BINARY:-}" ]; then
  BINARY=$(realpath "$BINARY")
  export BINARY CARGO=$root/packaging/built-cargo.sh
fi
mkdir -p "${1:-$root/target/live}"
cd "${1:-$root/target/live}"
if [ ! -e maturin/.ready ]; then
  python3 -m venv maturin
  maturin/bin/pip install --quiet --disable-pip-version-check 'maturin>=1.9,<2'
  touch maturin/.ready
fi
rm -rf dist
maturin/bin/python "$root/packaging/build.py" --out dist
bash "$root/packaging/check.sh" dist
