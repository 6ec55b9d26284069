#!/usr/bin/env python3
"""The latency protocol of `latency.rs` in transformers: the same prompt, threads and order of rounds.

    python benches/latency.py FOLDER... [--dtype float32|bfloat16] [--threads N] [--rounds N] [--prompt N] [--generated N]

Prints a JSON list, one object a folder: `wall` and `processor`, the seconds of each round. Mixtures run by their own
`modeling_bam.py`. Prefill computes the last position's logits alone, as ours does.
"""

import argparse
import json
import os
import tempfile
import time

os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="bam-latency-"))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers


def generate(model, prompt, generated):
    tokens, cache = prompt, None
    with torch.inference_mode():
        for _ in range(generated):
            output = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, tokens = output.past_key_values, output.logits[:, -1:].argmax(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    for name, default in (("threads", 2), ("rounds", 10), ("prompt", 256), ("generated", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.utils.logging.disable_progress_bar()
    models = []
    for folder in arguments.folders:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, arguments.dtype), trust_remote_code=True
        ).eval()
        ids = [(i * 7919 + 13) % model.config.vocab_size for i in range(arguments.prompt)]
        models.append((model, torch.tensor([ids]), {"wall": [], "processor": []}))
        generate(model, models[-1][1], arguments.generated)
    for _ in range(arguments.rounds):
        for model, prompt, times in models:
            wall, processor = time.perf_counter(), time.process_time()
            generate(model, prompt, arguments.generated)
            times["wall"].append(time.perf_counter() - wall)
            times["processor"].append(time.process_time() - processor)
    print(json.dumps([times for _, _, times in models]))


if __name__ == "__main__":
    main()
