#!/usr/bin/env bash
# From nothing to a verified BAM, offline: make a small seed with the paper's parallel block, branch it,
# change the branches, upcycle, validate, show. Results go to ./quickstart (or to the folder named first).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-quickstart}
if [ -z "${BAM_CONVERT:-}" ]; then
  cargo build --release --manifest-path "$here/../Cargo.toml"
  BAM_CONVERT=$here/../target/release/bam-convert
fi
say() { printf '\n$ bam-convert %s\n' "$*"; "$BAM_CONVERT" "$@"; }

rm -rf "$out"
say init "$here/tiny-seed" --out "$out/seed"
say branch "$out/seed" --into code,law,math --out "$out/branches"
# Training the branches is a later version's work: until then, each moves a tenth of the way to another model.
number=0
for name in code law math; do
  number=$((number + 1))
  say init "$here/tiny-seed" --out "$out/elsewhere/$name" --rng-seed $number
  say merge --model "$out/branches/$name:0.9" --model "$out/elsewhere/$name:0.1" --out "$out/experts/$name"
done
say upcycle --method bam --seed "$out/seed" --out "$out/bam" \
  --expert "code=$out/experts/code" --expert "law=$out/experts/law" --expert "math=$out/experts/math"
say validate "$out/bam" --against
say diff "$out/bam" "$out/seed" || [ $? -eq 1 ] # 1: they differ, as they should
say inspect "$out/bam"
