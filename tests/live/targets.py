#!/usr/bin/env python3
"""Mixtures in the formats of other programs, loaded by the installed transformers: every tensor is used and the logits are ours.

    python tests/live/targets.py --binary target/release/bam-convert --fixtures fixtures

For each of MIXTURES the binary makes the mixture and computes logits. transformers loads the folder without code beside it, and
must miss and leave nothing. Its logits may differ by at most 1e-4. What this version saves again, in whatever layout it
has, must be read by the binary with the same logits. With `--mergekit` (a program `mergekit-moe` 0.1.5) its outputs are read as
they are and taken apart, which both versions of transformers must then load with the logits of the binary.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

TOKENS = [1, 72, 105, 300, 2, 17, 383, 44, 44, 260, 9, 131, 310, 3, 99, 201]
MIXTURES = [
    ("llama", "mixtral", []),
    ("llama", "mixtral", ["--top-k", "soft"]),
    ("mistral", "mixtral", ["--no-seed-expert"]),
    ("llama", "qwen2_moe", []),
    ("qwen2", "qwen2_moe", ["--norm-topk-prob", "false"]),
    ("qwen2", "qwen2_moe", ["--top-k", "1"]),
    ("qwen3", "qwen3_moe", []),
    ("qwen3", "qwen3_moe", ["--norm-topk-prob", "false", "--top-k", "1"]),
]


MERGEKIT = [("llama", None), ("qwen3", "qwen3"), ("qwen2", "qwen")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--fixtures", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--mergekit", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    work, faults = Path(tempfile.mkdtemp(prefix="targets-")), 0

    def bam(*words):
        subprocess.run([str(word) for word in (arguments.binary, *words)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def logits(folder):
        tokens = work / "tokens.json"
        tokens.write_text(json.dumps(TOKENS))
        bam("logits", folder, "--tokens", tokens, "--dump", work / "logits.safetensors")
        return load_file(work / "logits.safetensors")["logits"]

    def load(folder):
        model, notes = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        with torch.no_grad():
            theirs = model.eval()(torch.tensor([TOKENS])).logits[0]
        return theirs, {key: notes[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if notes[key]}

    for family, architecture in MERGEKIT if arguments.mergekit else []:
        expert = "- {source_model: %s, positive_prompts: [a]}"
        lines = [f"base_model: {arguments.fixtures / family / 'seed'}", "gate_mode: random", "dtype: bfloat16", "experts:"]
        lines += [expert % (arguments.fixtures / family / name) for name in ("code", "law")]
        lines += [f"architecture: {architecture}"] if architecture else []
        lines += ["shared_experts:", expert % (arguments.fixtures / family / "code")] if family == "qwen2" else []
        recipe, made, apart = (work / f"{family}-mergekit{end}" for end in (".yaml", "", "-classic"))
        recipe.write_text("\n".join(lines) + "\n")
        subprocess.run([arguments.mergekit, recipe, made, "--random-seed", "1"], check=True, capture_output=True)
        bam("validate", made)
        bam("convert", made, apart, "--layout", "classic")
        bam("validate", apart, "--against")
        theirs, unused = load(apart)
        ours = logits(made)
        off, back = (ours - theirs).abs().max().item(), (logits(apart) - ours).abs().max().item()
        bad = bool(unused) or not off <= 1e-4 or back != 0.0
        faults += bad
        print(f"{family:8} mergekit   {off:.1e}, taken apart {back:.1e} {'FAULT ' if bad else ''}{unused or ''}")

    for number, (family, target, options) in enumerate(MIXTURES):
        source, folder = arguments.fixtures / family, work / f"{number}-{target}"
        experts = [word for name in ("code", "law") for word in ("--expert", f"{name}={source / name}")]
        bam("upcycle", "--method", "btx", "--target", target, "--seed", source / "seed", *experts, *options, "--out", folder, "--quiet")
        theirs, unused = load(folder)
        ours = logits(folder)
        off = (ours - theirs).abs().max().item()
        again = work / f"{number}-again"
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(again)
        back = (logits(again) - ours).abs().max().item()
        bad = bool(unused) or not off <= 1e-4 or back != 0.0
        faults += bad
        print(f"{family:8} {target:10} {' '.join(options):32} {off:.1e}, saved again {back:.1e} {'FAULT ' if bad else ''}{unused or ''}")
    print(f"transformers {transformers.__version__}: {faults} faults")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
