#!/usr/bin/env python3
"""The exported modeling files on odd configurations, under the transformers that is installed (4.57.1 and 5.x).

    python tests/live/configs.py --binary target/release/bam-convert --fixtures fixtures

For each change of a dense family in `fixtures/configs.json` that the binary accepts, the mixture of the altered model with
itself must compute what transformers computes for the altered model. Changes that lead to the same config.json are run once.
Exits 1 where one differs.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WORK = Path(tempfile.mkdtemp(prefix="bam-configs-"))
os.environ["HF_MODULES_CACHE"] = str(WORK / "modules")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import AutoModelForCausalLM

POSITIONS, COLUMNS = (7, 15), (3, 100, 201, 383)
DENSE = ("llama", "mistral", "qwen2", "qwen3", "cohere")
TOLERANCE = 1e-4


def expected(case, config, usual):
    """What transformers computes for the altered model: the version that wrote the file counts where they differ."""
    results = {key: usual if case.get(key) == "base" else case.get(key) for key in ("five", "four")}
    five, four = results["five"], results["four"] or results["five"]
    old = not str(config.get("transformers_version") or "4").startswith("5")
    order = (four, five) if old else (five, four)
    return next((result for result in order if isinstance(result, list)), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--fixtures", type=Path, required=True)
    parser.add_argument("--family", action="append", help="only these")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    tokens = torch.tensor([json.loads((arguments.fixtures / "golden" / "tokens.json").read_text())])
    failed = 0
    for first, *cases in json.loads((arguments.fixtures / "configs.json").read_text()):
        family = first["family"]
        if family not in (arguments.family or DENSE):
            continue
        seed, out = WORK / family, WORK / f"{family}-bam"
        seed.mkdir()
        shutil.copy(arguments.fixtures / family / "seed" / "model.safetensors", seed)
        seen, worst, refused = {}, 0.0, 0
        for case in cases:
            config = {k: v for k, v in first["config"].items() if k not in case.get("drop", [])} | case.get("set", {})
            wanted = expected(case, config, first["base"])
            if wanted is None:
                continue
            (seed / "config.json").write_text(json.dumps(config))
            command = [arguments.binary, "upcycle", "--method", "bam", "--seed", seed, "--expert", f"x={seed}"]
            command += ["--top-k", "soft", "--out", out, "--force", "--quiet"]
            if subprocess.run([str(part) for part in command], capture_output=True).returncode:
                refused += 1
                continue
            written = json.loads((out / "config.json").read_text())
            key = json.dumps({k: v for k, v in written.items() if k != "transformers_version"}, sort_keys=True)
            if key not in seen:
                model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True, dtype=torch.float32)
                with torch.no_grad():
                    logits = model.eval()(tokens, use_cache=False).logits[0]
                seen[key] = [logits[p, c].item() for p in POSITIONS for c in COLUMNS]
            difference = max(abs(a - b) for a, b in zip(seen[key], wanted))
            worst = max(worst, difference)
            if not difference < TOLERANCE:
                failed += 1
                print(f"{family}: {json.dumps(case.get('set'))} without {case.get('drop')}: {difference:.2g}")
        print(f"{family}: {len(cases)} changes, {refused} refused, {len(seen)} models, largest difference {worst:.1e}")
    shutil.rmtree(WORK)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
