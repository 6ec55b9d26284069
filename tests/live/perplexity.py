"""Perplexity by `bam-convert eval` and by transformers, on the same windows: equal to four digits.

    perplexity.py BINARY CKPT [TEXT] [--context 512] [--max-tokens 4096]

Without TEXT, this repository's own documentation is the text. Needs torch and transformers.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("checkpoint")
    parser.add_argument("text", nargs="?")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=4096)
    arguments = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parents[2]
    text = pathlib.Path(arguments.text) if arguments.text else root / "docs" / "design" / "architecture.md"

    command = [arguments.binary, "eval", arguments.checkpoint, "--data", f"text={text}", "--json"]
    command += ["--context", str(arguments.context), "--max-tokens", str(arguments.max_tokens)]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ours = ours["models"][0]["domains"][0]

    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32, trust_remote_code=True)
    model.eval()
    ids = tokenizer(text.read_text(), return_tensors="pt").input_ids[0][: arguments.max_tokens]
    nll, count = 0.0, 0
    with torch.no_grad():
        for window in ids.split(arguments.context):
            if len(window) < 2:
                continue
            logits = model(input_ids=window[None]).logits[0, :-1].double()
            nll += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            count += len(window) - 1
    theirs = math.exp(nll / count)

    print(f"tokens scored: {ours['tokens']} and {count}")
    print(f"perplexity: {ours['perplexity']:.6f} by bam-convert, {theirs:.6f} by transformers")
    if ours["tokens"] != count or abs(ours["perplexity"] / theirs - 1) > 5e-5:
        sys.exit("they differ")


main()
