#!/usr/bin/env python3
"""A real mixture: `modeling_bam.py` in f32 against `reference.py` in f64 on one text.

    python tests/live/real.py BAM… [--code DIR] [--seed DIR --copies BAM…] [--tokens 64]

`--copies` are mixtures of copies of the seed with soft feed-forward routing, whose logits must be the seed's. Prints the
largest and mean difference and how often the most likely token is the same; exits 1 above 1e-4 of the largest logit.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

WORK = Path(tempfile.mkdtemp(prefix="bam-real-"))
os.environ["HF_MODULES_CACHE"] = str(WORK / "modules")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import reference

TEXT = (
    "The licensee shall keep this notice in all copies of the work. Let n be a natural number; then the sum of the first n "
    "odd numbers is n squared. def mean(values): return sum(values) / len(values)  # 2.5 for [1, 2, 3, 4]\n"
    "The capital of France is Paris, and the largest planet is Jupiter, which has 95 known moons."
)


def with_code(folder, code):
    """The folder, or one of links to its files with the .py files beside them."""
    if not code:
        return folder
    out = WORK / folder.name
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).symlink_to(path.resolve())
    for name in ("configuration_bam.py", "modeling_bam.py"):
        (out / name).unlink(missing_ok=True)
        shutil.copy(code / name, out)
    return out


def logits_of(folder, tokens, kind):
    options = {} if "auto_map" not in json.loads((folder / "config.json").read_text()) else {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=kind, **options
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].double().numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixtures", type=Path, nargs="*")
    parser.add_argument("--code", type=Path)
    parser.add_argument("--seed", type=Path)
    parser.add_argument("--copies", type=Path, nargs="*", default=[])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--keep", type=Path, help="keep what reference.py computes here, and read it again")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    any_folder = (arguments.mixtures + arguments.copies)[0]
    tokens = AutoTokenizer.from_pretrained(any_folder, trust_remote_code=True)(TEXT).input_ids[: arguments.tokens]
    print(f"transformers {transformers.__version__}, {len(tokens)} tokens")
    wrong = 0

    def compare(name, mine, theirs):
        nonlocal wrong
        apart, largest = np.abs(mine - theirs), np.abs(theirs).max()
        same = (mine.argmax(-1) == theirs.argmax(-1)).mean()
        wrong += apart.max() > 1e-4 * largest
        print(
            f"{name:40} max {apart.max():.2e}  mean {apart.mean():.2e}  same token {same:.1%}  largest logit {largest:.1f}",
            flush=True,
        )

    for folder in arguments.mixtures:
        kept = arguments.keep and arguments.keep / f"{folder.name}-{len(tokens)}.npy"
        if kept and kept.exists():
            expected = np.load(kept)
        else:
            expected, _ = reference.forward(folder, tokens)
            if kept:
                np.save(kept, expected)
        ready = with_code(folder, arguments.code)
        for kind in ("eager", "sdpa"):
            compare(f"{folder.name}, {kind}, reference", logits_of(ready, tokens, kind), expected)
    if arguments.copies:
        seed = logits_of(arguments.seed, tokens, "sdpa")
        for folder in arguments.copies:
            compare(
                f"{folder.name}, sdpa, the seed", logits_of(with_code(folder, arguments.code), tokens, "sdpa"), seed
            )
    shutil.rmtree(WORK)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
