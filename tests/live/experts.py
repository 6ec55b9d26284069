#!/usr/bin/env python3
"""Mixtures whose experts were changed one by one, and experts extracted from them, loaded by the installed transformers.

    python tests/live/experts.py --binary target/release/bam-convert --fixtures fixtures

For each of MIXTURES the binary adds an expert, removes the first one and extracts the new one again. transformers loads each
folder and must miss and leave nothing. Its logits may differ from the binary's by at most 1e-4.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

TOKENS = [1, 72, 105, 300, 2, 17, 383, 44, 44, 260, 9, 131, 310, 3, 99, 201]
MIXTURES = [
    ("llama", ["--method", "bam"]),
    ("qwen3", ["--method", "bam", "--kv", "shared"]),
    ("cohere", ["--method", "bam"]),
    ("qwen2", ["--method", "btx"]),
    ("llama", ["--method", "btx", "--target", "mixtral"]),
    ("qwen2", ["--method", "btx", "--target", "qwen2_moe", "--top-k", "1", "--norm-topk-prob", "false"]),
    ("qwen3", ["--method", "btx", "--target", "qwen3_moe"]),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--fixtures", type=Path, required=True)
    arguments = parser.parse_args()
    binary = arguments.binary.resolve()
    worst = 0.0
    for family, flags in MIXTURES:
        with tempfile.TemporaryDirectory() as work:
            folder = arguments.fixtures.resolve() / family
            law = f"law={folder / 'law'}"

            def run(*words: str, work: str = work) -> None:
                subprocess.run([binary, "--quiet", *words], cwd=work, check=True)

            run("upcycle", *flags, "--seed", str(folder / "seed"), "--expert", f"code={folder / 'code'}", "--out", "base")
            run("expert", "add", "base", "--expert", law, "--shared", "mean", "--out", "added")
            run("expert", "remove", "added", "seed", "--out", "removed")
            run("expert", "extract", "removed", "law", "--out", "extracted")
            for name in ["added", "removed", "extracted"]:
                difference = compare(binary, Path(work), name)
                worst = max(worst, difference)
                print(f"{family:7} {' '.join(flags):70} {name:10} {difference:.2g}")
    print(f"transformers {transformers.__version__}: largest difference of logits {worst:.2g}")
    return int(worst > 1e-4)


def compare(binary: Path, work: Path, name: str) -> float:
    """The largest difference between our logits and transformers'."""
    (work / "tokens.json").write_text(json.dumps(TOKENS))
    dump = f"{name}.logits"
    subprocess.run([binary, "--quiet", "logits", name, "--tokens", "tokens.json", "--dump", dump], cwd=work, check=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        work / name, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
    )
    strays = [key for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]]
    if strays:
        sys.exit(f"{name}: {strays}: {info}")
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([TOKENS])).logits[0]
    return float((theirs - load_file(work / dump)["logits"]).abs().max())


if __name__ == "__main__":
    sys.exit(main())
