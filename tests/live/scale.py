#!/usr/bin/env python3
"""A surgery at scale: four models of 8B shapes, from sparse files, within --memory, killed and resumed.

    python tests/live/scale.py BINARY FOLDER [--memory 1GB] [--layers 32] [--dig-holes] [--flags …]

Makes a seed and three experts with the shapes of Llama 3 8B in bfloat16. Their files are sparse: each tensor has random
bytes at its beginning and end, the rest is zero and takes no disk. The mixture takes 56 GB, and `--dig-holes` gives the
zeros of whole shards back to the disk while the surgery runs. The run is killed with SIGKILL once two shards are whole,
starts again, and must keep them. Checked: the largest anonymous memory of both runs, the kept shards, and the marks of
every copied or averaged tensor of the output. Exits 1 on a fault.
"""

import argparse
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("binary", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--memory", default="1GB")
parser.add_argument("--layers", type=int, default=32)
parser.add_argument("--dig-holes", action="store_true")
parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags of upcycle, last")
options = parser.parse_args()

HIDDEN, INTERMEDIATE, VOCABULARY, KEYS = 4096, 14336, 128256, 1024
MARK = 64
SHARD = 5_000_000_000
SEED, EXPERTS = "seed", ["code", "law", "math"]
MANIFEST = "bam-manifest.json"


def tensors():
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    for layer in range(options.layers):
        place = f"model.layers.{layer}."
        yield place + "input_layernorm.weight", [HIDDEN]
        yield place + "post_attention_layernorm.weight", [HIDDEN]
        yield place + "self_attn.q_proj.weight", [HIDDEN, HIDDEN]
        yield place + "self_attn.k_proj.weight", [KEYS, HIDDEN]
        yield place + "self_attn.v_proj.weight", [KEYS, HIDDEN]
        yield place + "self_attn.o_proj.weight", [HIDDEN, HIDDEN]
        yield place + "mlp.gate_proj.weight", [INTERMEDIATE, HIDDEN]
        yield place + "mlp.up_proj.weight", [INTERMEDIATE, HIDDEN]
        yield place + "mlp.down_proj.weight", [HIDDEN, INTERMEDIATE]
    yield "model.norm.weight", [HIDDEN]
    yield "lm_head.weight", [VOCABULARY, HIDDEN]


def size(shape):
    count = 2
    for length in shape:
        count *= length
    return count


def mark(name, tensor, place):
    """Random bytes that tell model, tensor and place; finite numbers when read as bfloat16."""
    drawn = random.Random(f"{name} {tensor} {place}")
    return b"".join(struct.pack("<H", drawn.randrange(0x3C00, 0x3F80)) for _ in range(MARK // 2))


def write(name):
    folder = options.folder / name
    folder.mkdir(parents=True, exist_ok=True)
    shards, total = [[]], 0
    for tensor, shape in tensors():
        if total + size(shape) > SHARD and shards[-1]:
            shards.append([])
            total = 0
        shards[-1].append((tensor, shape))
        total += size(shape)
    index = {}
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for tensor, shape in members:
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size(shape)]}
            index[tensor] = file
            offset += size(shape)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            start = out.tell()
            out.truncate(start + offset)
            for tensor, shape in members:
                begin, end = header[tensor]["data_offsets"]
                out.seek(start + begin)
                out.write(mark(name, tensor, "first"))
                out.seek(start + end - MARK)
                out.write(mark(name, tensor, "last"))
    total = sum(size(shape) for _, shape in tensors())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
                "num_hidden_layers": options.layers, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": VOCABULARY,
                "max_position_embeddings": 8192, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
                "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.57.6",
            }
        )
    )  # fmt: skip


def shards_of(folder):
    return sorted(folder.glob("model-*.safetensors")) if folder.exists() else []


def whole(partial):
    """The shards that the run has recorded as whole: name and SHA-256."""
    try:
        return {shard["path"]: shard["sha256"] for shard in json.loads((partial / ".progress.json").read_text())["shards"]}
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def run(command, partial, stop_after=None):
    """Runs to the end, or until shards are whole and then kills. Returns seconds, largest resident memory, whole shards."""
    began = time.monotonic()
    child = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    peak, done, dug = 0, {}, set()
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            anonymous = [line for line in status.splitlines() if line.startswith("RssAnon")]
            peak = max([peak] + [int(line.split()[1]) * 1024 for line in anonymous])
        except FileNotFoundError:
            pass
        done = whole(partial) or done
        if options.dig_holes:
            for name in set(done) - dug:
                if (partial / name).exists():
                    subprocess.run(["fallocate", "--dig-holes", partial / name], check=False)
                    dug.add(name)
        if stop_after and len(done) >= stop_after:
            child.send_signal(signal.SIGKILL)
            child.wait()
            return time.monotonic() - began, peak, done
        time.sleep(0.2)
    if stop_after or child.returncode:
        sys.exit(f"the run ended by itself with exit code {child.returncode}")
    return time.monotonic() - began, peak, done


def bfloat16(value):
    """The nearest bfloat16 of a finite number, ties to even, as its 16 bits."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def expected(expression, place):
    """What a tensor begins or ends with, or None where its expression draws."""
    if expression["op"] == "copy":
        return mark(expression["source"], expression["tensor"], place)
    if expression["op"] != "mean":
        return None
    marks = [expected(part, place) for part in expression["of"]]
    columns = zip(*(struct.unpack(f"<{MARK // 2}H", one) for one in marks))
    values = ([struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in column] for column in columns)
    return struct.pack(f"<{MARK // 2}H", *(bfloat16(sum(column) / len(column)) for column in values))


def check_marks(out):
    """Each copied or averaged tensor begins and ends as its sources say; returns how many were compared, and all."""
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    headers = {}
    for file in set(index.values()):
        with open(out / file, "rb") as weights:
            length = struct.unpack("<Q", weights.read(8))[0]
            headers[file] = 8 + length, json.loads(weights.read(length))
    records = json.loads((out / MANIFEST).read_text())["tensors"]
    compared = 0
    for name, record in records.items():
        start, header = headers[index[name]]
        begin, end = header[name]["data_offsets"]
        wanted = [expected(record["expression"], place) for place in ("first", "last")]
        if None in wanted:
            continue
        with open(out / index[name], "rb") as weights:
            weights.seek(start + begin)
            found = [weights.read(MARK)]
            weights.seek(start + end - MARK)
            found.append(weights.read(MARK))
        if found != wanted:
            sys.exit(f"{name}: other bytes than {record['expression']} gives")
        compared += 1
    return compared, len(records)


for model in [SEED, *EXPERTS]:
    write(model)
out = options.folder / "bam"
partial = options.folder / ".bam.partial"
command = [options.binary, "upcycle", "--method", "bam", "--seed", options.folder / SEED, "--out", out, "--memory", options.memory, "--quiet", "--force"]
for expert in EXPERTS:
    command += ["--expert", f"{expert}={options.folder / expert}"]
command += options.flags

seconds, peak, kept = run(command, partial, stop_after=2)
print(f"killed after {seconds:.0f} s with {len(kept)} shards whole; largest anonymous memory {peak / 1e6:.0f} MB")
inodes = {name: (partial / name).stat().st_ino for name in kept}
seconds, again, _ = run(command, partial)
print(f"resumed and finished in {seconds:.0f} s; largest anonymous memory {again / 1e6:.0f} MB")
written = {name: (out / name).stat().st_ino for name in kept}
if written != inodes:
    sys.exit(f"the shards {sorted(kept)} were written again")
compared, tensors_written = check_marks(out)
total = sum(shard.stat().st_size for shard in shards_of(out))
print(f"{total / 1e9:.1f} GB in {len(shards_of(out))} shards; {compared} of {tensors_written} tensors have the marks of their sources")
