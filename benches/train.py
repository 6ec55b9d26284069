#!/usr/bin/env python3
"""The training step of `train.rs` in transformers and torch: the same ids, threads and order of rounds.

    python benches/train.py FOLDER... [--threads N] [--rounds N] [--batch N] [--seq N]

Prints a JSON list, one object a folder: `wall` and `processor`, the seconds of each round. Mixtures run by their own
`modeling_bam.py`.
"""

import argparse
import json
import os
import tempfile
import time

os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="bam-train-"))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers


def step(model, ids):
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+")
    for name, default in (("threads", 2), ("rounds", 5), ("batch", 8), ("seq", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    models = []
    for folder in arguments.folders:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
        vocab = model.config.vocab_size
        rows = [
            [(row * 7919 + i * 104729 + 13) % vocab for i in range(arguments.seq)] for row in range(arguments.batch)
        ]
        models.append((model.train(), torch.tensor(rows), {"wall": [], "processor": []}))
        step(*models[-1][:2])
    for _ in range(arguments.rounds):
        for model, ids, times in models:
            wall, processor = time.perf_counter(), time.process_time()
            step(model, ids)
            times["wall"].append(time.perf_counter() - wall)
            times["processor"].append(time.process_time() - processor)
    print(json.dumps([times for _, _, times in models]))


if __name__ == "__main__":
    main()
