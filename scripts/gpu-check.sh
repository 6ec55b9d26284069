#!/usr/bin/env bash
# Checks a binary of bam-convert on a GPU and measures it, in at most seven minutes: one command, one JSON file.
#
#     scripts/gpu-check.sh --binary target/release/bam-convert --out gpu.json
#     scripts/gpu-check.sh --binary target/debug/bam-convert --cpu        # everything tiny, on the CPU
#
# It needs Python 3.8 and no network. `--python` names the Python that has torch and transformers; without them, their
# stages are not run. docs/design/gpu.md describes the stages.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "error: $python not found; hint: set PYTHON to a Python 3.8 or newer" >&2
  exit 3
fi
# The program below limits each stage, and itself to 400 seconds. This limit is for a program that hangs all the same.
# In the foreground, so that Ctrl-C reaches the program, which ends all that it has started.
exec timeout --foreground --kill-after=5 412 "$python" "$here/gpu_check.py" "$@"
