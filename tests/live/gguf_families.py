#!/usr/bin/env python3
"""GGUF files of families beyond Llama in llama.cpp: the log-probabilities that the binary computes from the folder.

    python tests/live/gguf_families.py --binary target/release/bam-convert --fixtures fixtures [--only NAME]

needs xllamacpp (llama.cpp, built), torch and safetensors. Each tiny checkpoint loses biases that llama.cpp does not have, gets the
tokenizer of the tiny Llama, and is written in f32. llama.cpp reads texts of random tokens and names its most likely next tokens.
Their log-probabilities may differ by 0.02, because its cache is f16. Exits 1 if anything was wrong.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TOLERANCE = 0.02
TEXTS = 24
ATTENTION, NETWORK = dict(attention_bias=False), dict(mlp_bias=False)
OUTPUTS = ("o_proj.bias", "gate_proj.bias", "up_proj.bias", "down_proj.bias")
# The checkpoint, the endings of tensors that it loses, and keys that change.
FAMILIES = {
    "qwen2": ("qwen2/seed", (), {}),
    "qwen3": ("qwen3/seed", (), {}),
    "cohere": ("cohere/seed", (), {}),
    "seed_oss": ("families/seed_oss", OUTPUTS, dict(attention_out_bias=False, **NETWORK)),
    "olmo2": ("families/olmo2", (".bias",), ATTENTION),
    "exaone4": ("families/exaone4", (), {}),
    "exaone": ("families/exaone", (), {}),
    "arcee": ("families/arcee", (".bias",), ATTENTION | NETWORK),
    "hunyuan_v1_dense": ("families/hunyuan_v1_dense", (".bias",), ATTENTION),
    "granite": ("families/granite", (), {}),
    "internlm2": ("families/internlm2", (".bias",), dict(bias=False)),
    "smollm3": (
        "families/smollm3", (".bias",),
        dict(use_sliding_window=False, no_rope_layers=[1, 1, 1, 0], layer_types=None, **ATTENTION, **NETWORK),
    ),
    "stablelm": ("families/stablelm", (), dict(tie_word_embeddings=False)),
    "stablelm_sequential": ("families/stablelm_sequential", (), {}),
    "cohere2": (
        "families/cohere2", (".bias", "lm_head.weight"),
        dict(tie_word_embeddings=True, layer_types=["sliding_attention"] * 3 + ["full_attention"], **ATTENTION),
    ),
    "phi": ("families/phi", (), dict(hidden_act="gelu_new", tie_word_embeddings=False)),
    "gemma": ("families/gemma", (".bias",), ATTENTION),
    "phi3": (
        "families/phi3", (),
        dict(sliding_window=None, rope_parameters=dict(rope_type="default", rope_theta=25000.0, partial_rotary_factor=0.75)),
    ),
    "gemma2": (
        "families/gemma2", (".bias", "lm_head.weight"),
        dict(query_pre_attn_scalar=16, tie_word_embeddings=True, **ATTENTION),
    ),
    "gemma3_text": (
        "families/gemma3_text", (),
        dict(query_pre_attn_scalar=16, layer_types=["sliding_attention"] * 4, sliding_window_pattern=6),
    ),
    "glm4": ("families/glm4", (), {}),
    "gpt_neox": ("families/gpt_neox", (), {}),
    "gpt_neox_sequential": ("families/gpt_neox", (), dict(use_parallel_residual=False)),
    "ministral3": ("families/ministral3", (), dict(sliding_window=None)),
    "granitemoe": ("mixtures/granitemoe", (), {}),
}  # fmt: skip
# Heads of their own, as published: llama.cpp does not open others.
OWN_HEADS = ("phi", "stablelm")


def run(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert not done.returncode, done.stderr


def checkpoint(fixtures, name, folder):
    source, without, change = FAMILIES[name]
    shutil.copytree(fixtures / source, folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(fixtures / "llama/seed" / file, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(tuple(without) or "\0")}
    if name in OWN_HEADS:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0).clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def compared(binary, fixtures, name, work):
    """The largest difference, and how many log-probabilities were compared."""
    import xllamacpp

    folder, file = work / name, work / f"{name}.gguf"
    checkpoint(fixtures, name, folder)
    run(binary, "convert", folder, file, "--dtype", "f32")
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.warmup, parameters.cpuparams.n_threads = 256, False, 1
    server = xllamacpp.Server(parameters)
    draw, worst, count = random.Random(5), 0.0, 0
    for number in range(TEXTS):
        text = [1] + [draw.randrange(5, 380) for _ in range(3 + number)]
        body = dict(prompt=text, n_predict=1, temperature=0.0, n_probs=8, cache_prompt=False)
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = json.loads(urllib.request.urlopen(request, timeout=120).read())
        # None are said after a token that ends the text.
        found = [item for place in answer.get("completion_probabilities", []) for item in place["top_logprobs"]]
        if not found:
            continue
        (work / "tokens.json").write_text(json.dumps(text))
        run(binary, "logits", folder, "--tokens", work / "tokens.json", "--dump", work / "logits.safetensors")
        ours = torch.log_softmax(load_file(work / "logits.safetensors")["logits"][-1].double(), -1)
        worst = max([worst, *(abs(item["logprob"] - float(ours[item["id"]])) for item in found)])
        count += len(found)
    return worst, count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--fixtures", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--only", choices=FAMILIES)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="gguf-families-"))
    if arguments.only:
        worst, count = compared(arguments.binary, arguments.fixtures, arguments.only, work)
        bad = worst > TOLERANCE or count < TEXTS
        print(f"{arguments.only}: {count} log-probabilities differ by at most {worst:.1e}{' FAULT' if bad else ''}", flush=True)
        shutil.rmtree(work)
        return int(bad)
    # llama.cpp may end the process where it refuses a file.
    command = [sys.executable, __file__, "--binary", arguments.binary, "--fixtures", arguments.fixtures, "--only"]
    codes = [subprocess.run([str(word) for word in (*command, name)], stderr=subprocess.DEVNULL).returncode for name in FAMILIES]
    for name, code in zip(FAMILIES, codes):
        if code:
            print(f"{name}: FAULT, exit code {code}")
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
