#!/usr/bin/env python3
"""Router rows of `upcycle --router prompts:FILE` against the hidden states that transformers computes.

    python prompts.py BINARY SEED EXPERT    folders of a seed and of another model of its shape

Rows are computed anew from `output_hidden_states` in f32, each prompt on its own, and compared with the file that the
output keeps and with its routers.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load, load_file

EXPERTS = {
    "seed": (["The weather today is", "Once upon a time there was"], []),
    "code": (["def mean(values):\n    return", "for (int i = 0; i < 10; i++) {", "import numpy as np"], ["Dear Sir,"]),
}
TOLERANCE = 1e-5


def summary(model, tokenizer, prompts, mode):
    """What prompts amount to in each layer `[layers, hidden]`."""
    rows = []
    for prompt in prompts:
        text = (tokenizer.bos_token or "") + prompt
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        if mode == "cheap_embed":
            rows.append(model.get_input_embeddings()(ids)[0].double().sum(0, keepdim=True))
            continue
        states = torch.stack(model(ids, output_hidden_states=True).hidden_states[:-1])[:, 0].double()
        rows.append(states.mean(1) if mode == "hidden_avg" else states[:, -1])
    if mode == "cheap_embed":
        total = sum(rows)
        return (total / total.norm()).repeat(model.config.num_hidden_layers, 1)
    return sum(rows) / len(rows)


def main():
    binary, seed, expert = sys.argv[1:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(seed, dtype=torch.float32).eval()
    work = Path(tempfile.mkdtemp(prefix="bam-prompts-"))
    worst = 0.0
    for mode in ("hidden", "hidden_avg", "hidden_last", "cheap_embed"):
        experts = [dict(name=name, positive_prompts=a, negative_prompts=b) for name, (a, b) in EXPERTS.items()]
        (work / "prompts.json").write_text(json.dumps({"gate_mode": mode, "experts": experts}))
        out = work / mode
        command = [binary, "upcycle", "--method", "bam", "--seed", seed, "--expert", f"code={expert}", "--out", out]
        command += ["--router", f"prompts:{work / 'prompts.json'}", "--router-dtype", "f32", "--quiet"]
        subprocess.run([str(part) for part in command], check=True)
        subprocess.run([binary, "validate", out, "--against"], check=True, stdout=subprocess.DEVNULL)
        rows, tensors = load((out / "router-rows.st").read_bytes()), load_file(out / "model.safetensors")
        with torch.no_grad():
            expected = []
            for positive, negative in EXPERTS.values():
                row = summary(model, tokenizer, positive, mode)
                if negative:
                    row = row - summary(model, tokenizer, negative, mode)
                expected.append(row / row.norm(dim=-1, keepdim=True))
        for layer in range(model.config.num_hidden_layers):
            for part in ("mlp", "self_attn"):
                name = f"model.layers.{layer}.{part}.router.weight"
                assert torch.equal(rows[name], tensors[name]), name
                apart = (rows[name].double() - torch.stack([row[layer] for row in expected])).abs().max()
                worst = max(worst, float(apart))
        shutil.rmtree(out)
        print(f"{mode:12} rows of {len(EXPERTS)} experts in {model.config.num_hidden_layers} layers, largest difference {worst:.1e}")
    shutil.rmtree(work)
    assert worst < TOLERANCE, worst


if __name__ == "__main__":
    main()
