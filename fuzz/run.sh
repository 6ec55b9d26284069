#!/usr/bin/env bash
# Fuzzes every reader:   fuzz/run.sh SECONDS [TARGET…]      (SECONDS for each; all targets if none is named)
#
# Stable Rust does: libFuzzer comes with the crate libfuzzer-sys, coverage from LLVM's own pass. Inputs begin with
# fixtures/ and fixtures/hostile/; a target's findings are in fuzz/artifacts/TARGET-*, and
# `fuzz/target/…/release/TARGET FILE` runs it again. A crash, a panic, an overflow, 10 seconds for one input, and memory that
# the input's size does not justify (src/lib.rs) all count.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:?seconds for each target}
shift
host=$(rustc -vV | sed -n 's/^host: //p')
pass=(-Cpasses=sancov-module -Ccodegen-units=16 --cfg fuzzing)
for argument in level=4 inline-8bit-counters pc-table trace-compares; do
    pass+=("-Cllvm-args=-sanitizer-coverage-$argument")
done
# Checks that a release build leaves out, and a target folder of its own: other flags build everything anew.
export CARGO_PROFILE_RELEASE_OPT_LEVEL=2 CARGO_PROFILE_RELEASE_DEBUG=line-tables-only
export CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
RUSTFLAGS="${pass[*]}" cargo build --release --bins --target "$host" --target-dir target

hostile=../fixtures/hostile
fixtures=../fixtures
seeds() { # the files that a target's corpus begins with
    case $1 in
    safetensors) ls $hostile/*.safetensors $hostile/*.npz $fixtures/llama/seed/model.safetensors ;;
    pytorch) ls $hostile/pt-* $fixtures/pytorch/*.bin ;;
    adapter) ls $fixtures/adapters/*/adapter_config.json ;;
    index) ls $hostile/index-*/model.safetensors.index.json ;;
    gguf) ls $hostile/*.gguf $fixtures/gguf/llama-q8_0.gguf $fixtures/gguf/llama-spm-q4_0.gguf ;;
    config) ls $hostile/config-*/config.json $fixtures/*/seed/config.json $fixtures/paper_*.json ;;
    tokenizer) ls $hostile/*/tokenizer.json $fixtures/*/seed/tokenizer.json ;;
    yaml | scripts) ls $hostile/*.yaml ../formats/*.yaml ../recipes/*.yaml ;;
    manifest) ls $hostile/manifest-*/bam-manifest.json ;;
    tokens) ls $hostile/tokens-*/header.json ;;
    texts) ls $hostile/text-* | grep -v parquet ;;
    parquet) ls $hostile/text-*.parquet ;;
    mergekit) ls $hostile/{mergekit,linear,prompts}-*.yaml $fixtures/mergekit/*.yaml ;;
    answers) ls seeds/answers-* ;;
    results) ls seeds/eval.json $fixtures/golden/tokens.json ;;
    template) ls $hostile/template-*/chat_template.jinja $fixtures/*/seed/chat_template.jinja ;;
    esac 2>/dev/null || true
}

mkdir -p artifacts
failed=0
for target in "${@:-safetensors pytorch adapter index gguf config tokenizer yaml manifest tokens template texts parquet mergekit results answers scripts}"; do
    for target in $target; do
        mkdir -p "corpus/$target"
        seeds "$target" | while read -r file; do
            # No link: the fuzzer may rewrite its corpus.
            cp -f "$file" "corpus/$target/$(echo "${file#../fixtures/}" | tr / -)"
        done
        echo "== $target"
        "target/$host/release/$target" "corpus/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
            -max_len=65536 -artifact_prefix="artifacts/$target-" -print_final_stats=1 -verbosity=0 2>&1 |
            grep -E "stat::|panicked|ERROR|SUMMARY|Test unit" || true
        if ls artifacts/"$target"-* >/dev/null 2>&1; then failed=1; fi
    done
done
exit $failed
