#!/usr/bin/env python3
"""Recompute a BAM checkpoint from its sources, in numpy, without a line of the project's code.

    python tests/live/recompute.py --seed SEED --expert code=CODE --expert law=LAW --out OUT
           [--method bam|btx] [--kv expert|shared] [--shared-kv mean|seed] [--no-seed-expert] [--seed-copies N]
           [--preset paper] [--top-k K] [--attention-top-k K|soft] [--router-std 0.02] [--router-dtype D] [--rng-seed N]
    python tests/live/recompute.py --self-test

The options have the meaning of `bam-convert upcycle`'s; `--expert NAME=random` is an expert drawn at random. Needs numpy only.

Checked, as docs/reference/checkpoint.md says:
  * the set of tensor names, each dtype and shape;
  * expert tensors: the bytes of their source;
  * all others: the float64 sum in source order over the dense models, divided once, rounded once to nearest even;
  * routers: normal(0, std) draws of the documented generator, at most 1 unit in the last place off (libm differs);
  * random experts: shape, dtype, mean and deviation;
  * config.json (both spellings), tokenizer files, the index of a sharded output, the hashes of bam-manifest.json.

Prints a table and every fault; exits with 1 if there is one.
"""

import argparse
import hashlib
import json
import mmap
import re
import struct
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

# What one element of each safetensors dtype is stored as.
STORED = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "I64": "<i8",
    "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "u1",
}  # fmt: skip
AVERAGED = ("BF16", "F16", "F32", "F64")
TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip


# ---------------------------------------------------------------- safetensors


class Checkpoint:
    """A folder of safetensors files: `tensors[name] = (dtype, shape, raw bytes as a numpy array)`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.faults: list[str] = []
        self.tensors: dict[str, tuple[str, tuple[int, ...], np.ndarray]] = {}
        index = folder / "model.safetensors.index.json"
        if index.exists():
            self._read_sharded(json.loads(index.read_text(encoding="utf-8")))
        else:
            self.tensors = read_safetensors(folder / "model.safetensors")

    def _read_sharded(self, index: dict) -> None:
        weight_map = index["weight_map"]
        for shard in sorted(set(weight_map.values())):
            for name, tensor in read_safetensors(self.folder / shard).items():
                if weight_map.get(name) != shard:
                    self.faults.append(f"index: {name} lies in {shard}, the index says {weight_map.get(name)}")
                self.tensors[name] = tensor
        for name in weight_map.keys() - self.tensors.keys():
            self.faults.append(f"index: {name} is in no shard")
        total = sum(raw.nbytes for _, _, raw in self.tensors.values())
        if index.get("metadata", {}).get("total_size") != total:
            self.faults.append(f"index: total_size is {index.get('metadata', {}).get('total_size')}, tensors take {total}")

    def bytes(self, name: str) -> np.ndarray:
        return self.tensors[name][2]

    def values(self, name: str) -> np.ndarray:
        """The tensor decoded to float64, flat."""
        dtype, _, raw = self.tensors[name]
        return decode(raw, dtype)


def read_safetensors(path: Path) -> dict:
    with open(path, "rb") as file:
        data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + length].tobytes().decode("utf-8"))
    header.pop("__metadata__", None)
    body = data[8 + length :]
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        shape = tuple(entry["shape"])
        expected = np.dtype(STORED[entry["dtype"]]).itemsize
        for extent in shape:
            expected *= extent
        if stop - start != expected or stop > len(body):
            raise SystemExit(f"{path}: {name} takes {stop - start} bytes, its shape and dtype say {expected}")
        tensors[name] = (entry["dtype"], shape, body[start:stop])
    return tensors


# ---------------------------------------------------------------- numbers


def decode(raw: np.ndarray, dtype: str) -> np.ndarray:
    stored = raw.view(STORED[dtype])
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return stored.astype(np.float64)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float64 once, to nearest even, and return the raw bytes."""
    if dtype == "BF16":
        return round_bits(values, mantissa=7, exponent=8).view(np.uint8)
    if dtype == "F16":
        return round_bits(values, mantissa=10, exponent=5).view(np.uint8)
    with np.errstate(over="ignore"):
        return values.astype(STORED[dtype]).view(np.uint8)


def round_bits(values: np.ndarray, mantissa: int, exponent: int) -> np.ndarray:
    """float64 to a 16-bit format with `mantissa` stored bits and `exponent` exponent bits, by integer arithmetic."""
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    sign = ((bits >> np.uint64(63)) << np.uint64(15)).astype(np.uint16)
    magnitude = bits & np.uint64((1 << 63) - 1)
    bias = (1 << (exponent - 1)) - 1
    drop = np.uint64(52 - mantissa)
    half_less_one = np.uint64((1 << (51 - mantissa)) - 1)
    kept = (magnitude + half_less_one + ((magnitude >> drop) & np.uint64(1))) >> drop
    rebias = np.int64((1023 - bias) << mantissa)
    normal = kept.astype(np.int64) - rebias
    # Below the smallest normal number the step is constant: scaling by a power of two is exact, rint rounds to even.
    smallest = 2.0 ** (1 - bias)
    below = np.abs(values) < smallest
    subnormal = np.rint(np.where(below, np.abs(values), 0.0) * 2.0 ** (bias - 1 + mantissa)).astype(np.int64)
    infinity = ((1 << exponent) - 1) << mantissa
    result = np.minimum(np.where(below, subnormal, normal), infinity)
    result = np.where(np.isnan(values), infinity | (1 << (mantissa - 1)), result)
    return result.astype(np.uint16) | sign


def order(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Integers in which neighbouring floats differ by one (64-bit floats excepted: kept to 63 bits)."""
    width = {"BF16": "<i2", "F16": "<i2", "F32": "<i4", "F64": "<i8"}[dtype]
    signed = raw.view(width).astype(np.int64)
    lowest = np.int64(np.iinfo(np.dtype(width)).min)
    return np.where(signed < 0, lowest - signed, signed)


# ---------------------------------------------------------------- the generator


def chacha20(key: bytes, words: int) -> np.ndarray:
    """The first `words` little-endian u64 of the ChaCha20 keystream: 64-bit counter from 0, 64-bit nonce 0 (djb)."""
    blocks = (words * 8 + 63) // 64
    counter = np.arange(blocks, dtype=np.uint64)
    state = [np.full(blocks, word, dtype=np.uint32) for word in struct.unpack("<4I", b"expand 32-byte k")]
    state += [np.full(blocks, word, dtype=np.uint32) for word in struct.unpack("<8I", key)]
    state += [(counter & np.uint64(0xFFFFFFFF)).astype(np.uint32), (counter >> np.uint64(32)).astype(np.uint32)]
    state += [np.zeros(blocks, dtype=np.uint32)] * 2
    x = list(state)

    def rotate(value, by):
        return (value << np.uint32(by)) | (value >> np.uint32(32 - by))

    def quarter(a, b, c, d):
        x[a] = x[a] + x[b]
        x[d] = rotate(x[d] ^ x[a], 16)
        x[c] = x[c] + x[d]
        x[b] = rotate(x[b] ^ x[c], 12)
        x[a] = x[a] + x[b]
        x[d] = rotate(x[d] ^ x[a], 8)
        x[c] = x[c] + x[d]
        x[b] = rotate(x[b] ^ x[c], 7)

    for _ in range(10):
        for column in range(4):
            quarter(column, 4 + column, 8 + column, 12 + column)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            quarter(a, b, c, d)
    stream = np.stack([now + start for now, start in zip(x, state)], axis=1).astype("<u4")
    return np.ascontiguousarray(stream).reshape(-1).view("<u8")[:words]


def normal(rng_seed: int, name: str, count: int, std: float) -> np.ndarray:
    """`count` float64 draws of N(0, std²) for the tensor `name` (Box-Muller, the cosine half)."""
    key = hashlib.sha256(b"bam-convert rng v1\0" + struct.pack("<Q", rng_seed) + name.encode()).digest()
    words = chacha20(key, 2 * count)
    u1 = ((words[0::2] >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    u2 = (words[1::2] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return std * (np.sqrt(-2.0 * np.log(u1)) * np.cos(2.0 * np.pi * u2))


# ---------------------------------------------------------------- what the output must hold

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
ATTENTION = re.compile(r"self_attn\.((q|k|v|o)_(?:proj|norm)\.(?:weight|bias))")
FEED_FORWARD = re.compile(r"mlp\.((?:gate|up|down)_proj\.(?:weight|bias))")


class Sources:
    """The dense models of a surgery, in the order the settings give them."""

    def __init__(self, seed: Checkpoint, experts: list[tuple[str, Checkpoint | None]], settings):
        self.seed = seed
        given = [model for _, model in experts]
        # None means an expert drawn at random: it has no weights to average.
        self.attention = given if settings.no_seed_expert else [seed, *given]
        self.feed_forward = self.attention + [seed] * settings.seed_copies
        self.averaged = [model for model in self.attention if model is not None]


def expected(sources: Sources, settings) -> dict[str, tuple]:
    """Every output tensor: name -> ("copy", model, name) | ("mean", models, name) | ("router", rows) | ("random", name)."""
    tied = sources.seed.config.get("tie_word_embeddings", False)
    plan: dict[str, tuple] = {}
    for name in sources.seed.tensors:
        if name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight"):
            continue
        layer = LAYER.fullmatch(name)
        rest = layer.group(2) if layer else ""
        prefix = f"model.layers.{layer.group(1)}" if layer else ""
        if match := FEED_FORWARD.fullmatch(rest):
            per_expert(plan, f"{prefix}.mlp.experts", match.group(1), sources.feed_forward, name)
            plan[f"{prefix}.mlp.router.weight"] = ("router", len(sources.feed_forward))
        elif (match := ATTENTION.fullmatch(rest)) and settings.method == "bam":
            if match.group(2) in "kv" and settings.kv == "shared":
                models = [sources.seed] if settings.shared_kv == "seed" else sources.averaged
                plan[name] = ("mean", models, name)
            else:
                per_expert(plan, f"{prefix}.self_attn.attention_experts", match.group(1), sources.attention, name)
            plan[f"{prefix}.self_attn.router.weight"] = ("router", len(sources.attention))
        else:
            plan[name] = ("mean", sources.averaged, name)
    return plan


def per_expert(plan: dict, prefix: str, part: str, models: list, name: str) -> None:
    for index, model in enumerate(models):
        plan[f"{prefix}.{index}.{part}"] = ("random", name) if model is None else ("copy", model, name)


# ---------------------------------------------------------------- checks


class Report:
    def __init__(self):
        self.faults: list[str] = []
        self.rows: dict[str, list[int]] = {}  # kind -> [tensors, elements, faults]
        self.notes: list[str] = []

    def fault(self, text: str, kind: str | None = None) -> None:
        self.faults.append(text)
        if kind:
            self.rows.setdefault(kind, [0, 0, 0])[2] += 1

    def count(self, kind: str, elements: int) -> None:
        row = self.rows.setdefault(kind, [0, 0, 0])
        row[0] += 1
        row[1] += elements

    def print(self) -> int:
        print(f"{'what':12} {'checked':>9} {'elements':>13} {'faults':>7}")
        for kind, (checked, elements, faults) in self.rows.items():
            print(f"{kind:12} {checked:9} {elements:13} {faults:7}")
        for note in self.notes:
            print(f"note:  {note}")
        for text in self.faults:
            print(f"FAULT: {text}")
        print(f"FAULTS: {len(self.faults)}" if self.faults else "all equal")
        return 1 if self.faults else 0


def check_tensors(out: Checkpoint, sources: Sources, settings, report: Report) -> None:
    plan = expected(sources, settings)
    for name in sorted(plan.keys() - out.tensors.keys()):
        report.fault(f"{name}: missing from the output", plan[name][0])
    for name in sorted(out.tensors.keys() - plan.keys()):
        report.fault(f"{name}: not expected in the output")
    off = drawn = 0
    for name in sorted(plan.keys() & out.tensors.keys()):
        kind, *what = plan[name]
        dtype, shape, raw = out.tensors[name]
        report.count(kind, int(np.prod(shape)))
        if kind == "router":
            want_dtype = settings.router_dtype or main_dtype(sources.seed)
            want_shape = (what[0], sources.seed.config["hidden_size"])
        else:
            model = what[0] if kind == "copy" else sources.seed
            if what[-1] not in model.tensors:
                report.fault(f"{name}: {model.folder} has no {what[-1]}", kind)
                continue
            want_dtype, want_shape, _ = model.tensors[what[-1]]
        if (dtype, shape) != (want_dtype, want_shape):
            report.fault(f"{name}: is {dtype} {list(shape)}, expected {want_dtype} {list(want_shape)}", kind)
            continue
        if kind == "copy":
            if not np.array_equal(raw, what[0].bytes(what[1])):
                report.fault(f"{name}: differs from {what[1]} of {what[0].folder}", kind)
        elif kind == "mean":
            check_mean(name, raw, dtype, *what, report)
        elif kind == "router":
            off += check_draw(name, raw, dtype, settings.rng_seed, settings.router_std, report)
            drawn += int(np.prod(shape))
        else:
            check_random(name, raw, dtype, sources.seed.config, settings, report)
    report.notes.append(f"routers: {off} of {drawn} elements differ by one unit in the last place")


def check_mean(name: str, raw, dtype: str, models: list, source: str, report: Report) -> None:
    if dtype not in AVERAGED:
        return report.fault(f"{name}: no average of {dtype} is defined", "mean")
    for model in models:
        if source not in model.tensors:
            return report.fault(f"{name}: {model.folder} has no {source}", "mean")
    total = models[0].values(source)
    for model in models[1:]:
        total = total + model.values(source)
    want = encode(total / len(models), dtype)
    if np.array_equal(want, raw):
        return None
    mine, theirs = decode(want, dtype), decode(raw, dtype)
    wrong = np.flatnonzero(~((mine == theirs) | (np.isnan(mine) & np.isnan(theirs))))
    if len(wrong) == 0:
        return report.fault(f"{name}: differs from the mean in the sign of zeros or the payload of NaNs only", "mean")
    steps = np.abs(order(want, dtype) - order(raw, dtype))[wrong]
    first = wrong[0]
    return report.fault(
        f"{name}: {len(wrong)} of {len(mine)} elements are not the mean over {len(models)} models; element {first} is "
        f"{theirs[first]!r}, expected {mine[first]!r}; at most {steps.max()} units in the last place off",
        "mean",
    )


def check_draw(name: str, raw, dtype: str, rng_seed: int, std: float, report: Report) -> int:
    """Returns how many elements differ from the generator by exactly one unit in the last place."""
    if not check_spread(name, decode(raw, dtype), std, "router", report):
        return 0
    want = encode(normal(rng_seed, name, len(decode(raw, dtype)), std), dtype)
    steps = np.abs(order(want, dtype) - order(raw, dtype))
    if steps.max() > 1:
        report.fault(
            f"{name}: {int((steps > 1).sum())} of {len(steps)} elements are not the documented generator's, the first "
            f"at {int(np.argmax(steps > 1))}: {decode(raw, dtype)[np.argmax(steps > 1)]!r}, expected "
            f"{decode(want, dtype)[np.argmax(steps > 1)]!r}",
            "router",
        )
    return int((steps == 1).sum())


def check_random(name: str, raw, dtype: str, config: dict, settings, report: Report) -> None:
    """A random expert starts as transformers starts a new model: weights normal, biases 0, norms 1."""
    values = decode(raw, dtype)
    if name.endswith(".bias") or "_norm." in name:
        start = 0.0 if name.endswith(".bias") else 1.0
        if not np.all(values == start):
            report.fault(f"{name}: a new model has {start} here", "random")
        return
    std = config.get("initializer_range", 0.02)
    if check_spread(name, values, std, "random", report):
        want = encode(normal(settings.rng_seed, name, len(values), std), dtype)
        if np.abs(order(want, dtype) - order(raw, dtype)).max() > 1:
            report.notes.append(f"{name}: random as it must be, but not the router generator's draws")


def check_spread(name: str, values: np.ndarray, std: float, kind: str, report: Report) -> bool:
    """Mean and deviation lie within six standard errors (and 1 % for rounding) of N(0, std²)."""
    if not np.isfinite(values).all():
        report.fault(f"{name}: not all finite", kind)
    elif abs(values.mean()) > 6 * std / len(values) ** 0.5 + 0.01 * std:
        report.fault(f"{name}: mean {values.mean():.3g}, expected about 0", kind)
    elif abs(values.std() / std - 1) > 6 / (2 * len(values)) ** 0.5 + 0.01:
        report.fault(f"{name}: standard deviation {values.std():.4g}, expected about {std}", kind)
    else:
        return True
    return False


def main_dtype(model: Checkpoint) -> str:
    """The checkpoint's dtype: most of its elements have it."""
    sizes: dict[str, int] = {}
    for dtype, shape, _ in model.tensors.values():
        sizes[dtype] = sizes.get(dtype, 0) + int(np.prod(shape))
    return max(sizes, key=sizes.get)


def check_config(out: Checkpoint, sources: Sources, settings, report: Report) -> None:
    seed, config = sources.seed.config, out.config
    parallel = "model.layers.0.post_attention_layernorm.weight" not in sources.seed.tensors
    cohere = seed["model_type"] == "cohere"
    experts, attention = len(sources.feed_forward), len(sources.attention)
    merged = settings.method == "btx"
    top_k, normalised = routing(settings, experts)
    want = {
        "bam_version": [1], "model_type": ["bam"], "architectures": [["BamForCausalLM"]],
        "block": ["parallel" if parallel else "sequential"], "norm_type": ["layer" if cohere else "rms"],
        "norm_position": ["pre"], "mlp_type": ["gated"], "rope_interleaved": [cohere],
        "num_experts": [experts], "moe_intermediate_size": [seed["intermediate_size"]], "moe_layers": ["all"],
        "attention_kv": ["merged" if merged else settings.kv], "num_experts_per_tok": [top_k],
        "norm_topk_prob": [normalised], "router_aux_loss_coef": [0.01], "router_z_loss_coef": [0.001],
    }  # fmt: skip
    if not merged:
        soft = settings.attention_top_k == "soft"
        want |= {
            "num_attention_experts": [attention], "attention_moe_layers": ["all"], "norm_topk_prob_attention": [False],
            "num_attention_experts_per_tok": [attention if soft else int(settings.attention_top_k)],
        }  # fmt: skip
    spelled_twice = {"rope_theta", "rope_scaling", "rope_parameters", "torch_dtype", "dtype"}
    ours = {"model_type", "architectures", "auto_map", "transformers_version"}
    for key in seed.keys() - spelled_twice - ours - want.keys():
        want[key] = [seed[key]]
    for key, allowed in want.items():
        report.count("config", 0)
        if key not in config:
            report.fault(f"config.json: {key} is missing, expected {allowed[0]!r}", "config")
        elif config[key] not in allowed or type(config[key]) is not type(allowed[0]):
            report.fault(f"config.json: {key} is {config[key]!r}, expected {allowed[0]!r}", "config")
    auto_map = config.get("auto_map", {})
    for key in ("AutoConfig", "AutoModel", "AutoModelForCausalLM"):
        module, _, _ = str(auto_map.get(key)).rpartition(".")
        report.count("config", 0)
        if not module or not (out.folder / f"{module}.py").is_file():
            report.fault(f"config.json: auto_map has no usable {key}: {auto_map.get(key)!r}", "config")
    check_spellings(config, seed, TORCH.get(main_dtype(sources.seed)), report)


def check_spellings(config: dict, seed: dict, dtype: str | None, report: Report) -> None:
    """The keys of transformers 4.x and of 5.x must both be there and say what the seed's say."""
    theta, scaling = rope_of(seed)
    stated = seed.get("dtype", seed.get("torch_dtype")) or dtype
    new = config.get("rope_parameters")
    facts = {
        "dtype": (config.get("dtype"), stated),
        "torch_dtype": (config.get("torch_dtype"), stated),
        "rope_theta": (config.get("rope_theta"), theta),
        # Left out of a BAM (docs/reference/checkpoint.md); where it is present, it must equal rope_parameters.
        "rope_scaling": (strip(config.get("rope_scaling")) or scaling, scaling),
        "rope_parameters.rope_theta": ((new or {}).get("rope_theta"), theta),
        "rope_parameters.rope_type": ((new or {}).get("rope_type"), (scaling or {}).get("rope_type", "default")),
        "rope_parameters": (strip(new), scaling),
    }
    for key, (is_, wanted) in facts.items():
        report.count("config", 0)
        if is_ != wanted:
            report.fault(f"config.json: {key} says {is_!r}, expected {wanted!r}", "config")


def rope_of(config: dict) -> tuple[float, dict | None]:
    """(theta, scaling without theta, None where default), from either spelling."""
    if new := config.get("rope_parameters"):
        return new["rope_theta"], strip(new)
    return config.get("rope_theta", 10000.0), strip(config.get("rope_scaling"))


def strip(scaling: dict | None) -> dict | None:
    rest = {key: value for key, value in (scaling or {}).items() if key not in ("rope_theta", "type")}
    if "type" in (scaling or {}):
        rest.setdefault("rope_type", scaling["type"])
    return None if rest.get("rope_type", "default") == "default" else rest


def check_files(out: Checkpoint, sources: Sources, report: Report) -> None:
    """Tokenizer files byte for byte; configuration_bam.py, modeling_bam.py and a README beside them; modes."""
    for name in TOKENIZER_FILES:
        mine, theirs = sources.seed.folder / name, out.folder / name
        if not mine.exists():
            continue
        report.count("files", 0)
        if not theirs.exists():
            report.fault(f"{name}: the seed has it, the output has not", "files")
        elif mine.read_bytes() != theirs.read_bytes():
            report.fault(f"{name}: differs from the seed's", "files")
    for name in ("README.md", "configuration_bam.py", "modeling_bam.py", "bam-manifest.json"):
        report.count("files", 0)
        if not (out.folder / name).is_file():
            report.fault(f"{name}: missing from the output", "files")
    for path in sorted(out.folder.iterdir()):
        if path.is_file() and path.stat().st_mode & 0o044 != 0o044 & ~umask():
            report.fault(f"{path.name}: mode {path.stat().st_mode & 0o777:o} is not what the umask gives", "files")


def umask() -> int:
    import os

    now = os.umask(0o022)
    os.umask(now)
    return now


def check_manifest(out: Checkpoint, sources: Sources, report: Report) -> None:
    """Every hash that bam-manifest.json states for a file of the output or of a source, whatever its layout."""
    path = out.folder / "bam-manifest.json"
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    manifest = json.loads(text)
    stated = list(walk(manifest, ()))
    ours = {name: (digest, size) for inside, name, digest, size in stated if not inside}
    must = [p.name for p in out.folder.iterdir() if p.suffix == ".safetensors" or p.name.endswith(".index.json")]
    must += ["config.json", *(name for name in TOKENIZER_FILES if (out.folder / name).exists())]
    for name in sorted({*must, *ours}):
        report.count("manifest", 0)
        file = out.folder / name
        if name not in ours:
            report.fault(f"bam-manifest.json: no SHA-256 for {name}", "manifest")
        elif not file.is_file():
            report.fault(f"bam-manifest.json: lists {name}, which is not there", "manifest")
        elif sha256(file) != ours[name][0]:
            report.fault(f"bam-manifest.json: SHA-256 of {name} is not its file's", "manifest")
        elif ours[name][1] != file.stat().st_size:
            report.fault(f"bam-manifest.json: size of {name} is {ours[name][1]}, the file's {file.stat().st_size}", "manifest")
    folders = {model.folder for model in (sources.seed, *sources.feed_forward) if model is not None}
    known = {sha256(file) for folder in folders for file in folder.iterdir() if file.is_file()}
    theirs = [entry for entry in stated if entry[0]]
    report.notes.append(f"manifest: {len(ours)} files of the output, {len(theirs)} of the sources")
    for _, name, digest, _ in theirs:
        report.count("manifest", 0)
        if digest not in known:
            report.fault(f"bam-manifest.json: SHA-256 of the source file {name} is no source's", "manifest")
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            if sha256(file) not in {digest for _, _, digest, _ in theirs}:
                report.fault(f"bam-manifest.json: the source {file} is not recorded", "manifest")
    for word in (str(out.folder.resolve()), str(Path.home())):
        if len(word) > 1 and word in text:
            report.fault(f"bam-manifest.json: names an absolute path, {word}", "manifest")


def walk(node, trail: tuple):
    """Yield (in a source?, file name, sha256, size) for every `{…, "sha256": …}` or `name: hash` in the manifest."""
    if isinstance(node, dict):
        digest = node.get("sha256")
        if isinstance(digest, str):
            keys = [node[key] for key in ("path", "name", "file") if isinstance(node.get(key), str)]
            name = keys[0] if keys else str(trail[-1])
            yield any(str(step).startswith(("source", "parent", "input")) for step in trail), name, digest, node.get("size")
        for key, value in node.items():
            yield from walk(value, (*trail, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from walk(value, (*trail, index))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(seed: Path, experts: list[tuple[str, Path | None]], out: Path, settings) -> Report:
    report = Report()
    opened = {folder: Checkpoint(folder) for folder in {seed, *(f for _, f in experts if f)}}
    sources = Sources(opened[seed], [(name, opened.get(folder)) for name, folder in experts], settings)
    result = Checkpoint(out)
    for text in result.faults:
        report.fault(text)
    check_tensors(result, sources, settings, report)
    check_config(result, sources, settings, report)
    check_files(result, sources, report)
    check_manifest(result, sources, report)
    return report


# ---------------------------------------------------------------- self-test


def self_test() -> int:
    """Check the arithmetic against exact rationals and the checks against a small builder, whole and damaged."""
    rng = np.random.default_rng(0)
    test_rounding(rng)
    # RFC 7539 §2.3.2 differs in the counter's width only where a nonce is set; this is djb's all-zero vector.
    assert chacha20(bytes(32), 2).tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    assert abs(normal(0, "x", 200000, 0.02).std() - 0.02) < 2e-4
    with tempfile.TemporaryDirectory() as scratch:
        failed = test_builder(Path(scratch), rng)
    print("self-test:", "FAILED" if failed else "passed")
    return failed


def test_rounding(rng) -> None:
    bits = rng.integers(0, 1 << 64, 4000, dtype=np.uint64)
    wide = bits.view(np.float64)
    near = rng.standard_normal(4000) * 2.0 ** rng.integers(-150, 140, 4000)
    ties = (rng.integers(0, 1 << 9, 4000) / 256.0 + 1.0) * 2.0 ** rng.integers(-30, 30, 4000)
    for mantissa, exponent in ((7, 8), (10, 5)):
        bias = (1 << (exponent - 1)) - 1
        for value in (*wide, *near, *ties, 0.0, -0.0, 2.0**-134, 3 * 2.0**-134, 65519.999, 65520.0, 3.3961e38):
            if np.isnan(value) or np.isinf(value):
                continue
            got = int(round_bits(np.array([value]), mantissa, exponent)[0])
            exact = abs(Fraction(float(value)))
            power = max(exact.numerator.bit_length() - exact.denominator.bit_length(), 1 - bias) if exact else 1 - bias
            if exact and exact < Fraction(2) ** power:
                power = max(power - 1, 1 - bias)
            steps = round(exact / Fraction(2) ** (power - mantissa))  # Fraction rounds half to even
            pattern = min(((power + bias - 1) << mantissa) + steps, ((1 << exponent) - 1) << mantissa)
            assert got & 0x7FFF == pattern and (got >> 15) == int(np.signbit(value)), (value, got, pattern)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple, np.ndarray]]) -> None:
    header, offset = {}, 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(raw)]}
        offset += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(raw.tobytes() for _, _, raw in tensors.values()))


def test_builder(scratch: Path, rng) -> int:
    config = {
        "model_type": "qwen3", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "vocab_size": 10,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "tie_word_embeddings": True,
        "rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "bfloat16", "initializer_range": 0.02,
    }  # fmt: skip
    shapes = {
        "model.embed_tokens.weight": (10, 8), "model.norm.weight": (8,),
        **{f"model.layers.0.{n}_layernorm.weight": (8,) for n in ("input", "post_attention")},
        **{f"model.layers.0.self_attn.{n}_proj.weight": (4 if n in "kv" else 8, 8) for n in "qkvo"},
        "model.layers.0.self_attn.q_proj.bias": (8,), "model.layers.0.self_attn.k_norm.weight": (4,),
        **{f"model.layers.0.mlp.{n}_proj.weight": (8, 12) if n == "down" else (12, 8) for n in ("gate", "up", "down")},
    }  # fmt: skip
    for model in ("seed", "code", "law"):
        folder = scratch / model
        folder.mkdir()
        write_json(folder / "config.json", config)
        (folder / "tokenizer.json").write_text('{"model": {}}')
        dtypes = {name: "F32" if "layernorm" in name else "F16" if "k_norm" in name else "BF16" for name in shapes}
        drawn = {n: (dtypes[n], s, encode(rng.standard_normal(int(np.prod(s))), dtypes[n])) for n, s in shapes.items()}
        write_safetensors(folder / "model.safetensors", drawn)
    variants = [
        [], ["--kv", "shared"], ["--kv", "shared", "--shared-kv", "seed"], ["--method", "btx", "--top-k", "2"],
        ["--no-seed-expert"], ["--seed-copies", "2", "--rng-seed", "9"], ["--expert", "new=random"],
        ["--kv", "shared", "--expert", "new=random", "--attention-top-k", "2"],
    ]  # fmt: skip
    failed = 0
    for number, variant in enumerate(variants):
        out = scratch / f"out{number}"
        base = ["--seed", str(scratch / "seed"), "--out", str(out)]
        base += [word for model in ("code", "law") for word in ("--expert", f"{model}={scratch / model}")]
        settings = parse(base + variant)
        build(settings, out)
        report = check(settings.seed, settings.expert, out, settings)
        print(f"whole   {' '.join(variant) or 'defaults':58} {len(report.faults)} faults")
        failed |= bool(report.faults)
        for text in report.faults:
            print("   ", text)
    return failed | test_damage(parse(base[:2] + base[4:] + ["--out", str(scratch / "out0")]), scratch / "out0")


def routing(settings, experts: int) -> tuple[int, bool]:
    """Feed-forward experts a token, and whether their gates are divided by their sum."""
    paper = settings.preset == "paper"
    top_k = settings.top_k or (1 if paper else min(2, experts))
    return top_k, top_k > 1 and not paper


def build(settings, out: Path) -> None:
    """The reference builder: the same facts written down a second time, in the plainest way."""
    seed = Checkpoint(settings.seed)
    experts = [(name, Checkpoint(folder) if folder else None) for name, folder in settings.expert]
    sources = Sources(seed, experts, settings)
    result = {}
    for name, (kind, *what) in expected(sources, settings).items():
        if kind == "copy":
            result[name] = what[0].tensors[what[1]]
        elif kind == "mean":
            dtype, shape, _ = seed.tensors[what[1]]
            exact = [sum(map(Fraction, column)) / len(what[0]) for column in zip(*(m.values(what[1]).tolist() for m in what[0]))]
            result[name] = (dtype, shape, encode(np.array([float(x) for x in exact]), dtype))
        elif kind == "router":
            shape = (what[0], seed.config["hidden_size"])
            drawn = normal(settings.rng_seed, name, int(np.prod(shape)), settings.router_std)
            result[name] = ("BF16", shape, encode(drawn, "BF16"))
        else:
            dtype, shape, _ = seed.tensors[what[0]]
            count = int(np.prod(shape))
            plain = np.zeros(count) if name.endswith("bias") else np.ones(count)
            drawn = normal(settings.rng_seed, name, count, 0.02) if "_proj.weight" in name else plain
            result[name] = (dtype, shape, encode(drawn, dtype))
    out.mkdir()
    write_safetensors(out / "model.safetensors", result)
    (out / "tokenizer.json").write_bytes((settings.seed / "tokenizer.json").read_bytes())
    for name in ("README.md", "configuration_bam.py", "modeling_bam.py"):
        (out / name).write_text("")
    attention, merged = len(sources.attention), settings.method == "btx"
    soft = settings.attention_top_k == "soft"
    top_k, normalised = routing(settings, len(sources.feed_forward))
    write_json(out / "config.json", seed.config | {
        "bam_version": 1, "model_type": "bam", "architectures": ["BamForCausalLM"], "block": "sequential",
        "auto_map": {"AutoConfig": "configuration_bam.BamConfig", "AutoModel": "modeling_bam.BamModel",
                     "AutoModelForCausalLM": "modeling_bam.BamForCausalLM"},
        "norm_type": "rms", "norm_position": "pre", "mlp_type": "gated", "rope_interleaved": False,
        "num_experts": len(sources.feed_forward), "num_attention_experts": attention, "moe_intermediate_size": 12,
        "moe_layers": "all", "attention_moe_layers": "all", "attention_kv": "merged" if merged else settings.kv,
        "num_experts_per_tok": top_k, "norm_topk_prob": normalised, "norm_topk_prob_attention": False,
        "num_attention_experts_per_tok": attention if soft else int(settings.attention_top_k),
        "router_aux_loss_coef": 0.01, "router_z_loss_coef": 0.001, "dtype": "bfloat16",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    })  # fmt: skip
    files = {p.name: {"sha256": sha256(p), "size": p.stat().st_size} for p in out.iterdir() if p.suffix in (".safetensors", ".json")}
    folders = {model.folder for model in sources.feed_forward if model} | {settings.seed}
    entries = [{"path": p.name, "sha256": sha256(p), "size": p.stat().st_size} for f in folders for p in f.iterdir()]
    write_json(out / "bam-manifest.json", {"outputs": files, "sources": [{"files": entries}]})


def test_damage(settings, out: Path) -> int:
    """Each of these must be found, and named."""
    weights, config = (out / "model.safetensors").read_bytes(), (out / "config.json").read_bytes()
    tensors = read_safetensors(out / "model.safetensors")

    def flip(name: str, bits: int = 1) -> None:
        changed = dict(tensors)
        dtype, shape, raw = changed[name]
        raw = raw.copy()
        raw[0] ^= bits
        changed[name] = (dtype, shape, raw)
        write_safetensors(out / "model.safetensors", changed)

    def rename(name: str, to: str) -> None:
        write_safetensors(out / "model.safetensors", {to if key == name else key: value for key, value in tensors.items()})

    def edit(key: str, value) -> None:
        write_json(out / "config.json", json.loads(config) | {key: value})

    copy, mean = "model.layers.0.mlp.experts.1.up_proj.weight", "model.norm.weight"
    router = "model.layers.0.self_attn.router.weight"
    damages = [
        (copy, lambda: flip(copy)), (mean, lambda: flip(mean)), (router, lambda: flip(router, 4)),
        (copy, lambda: rename(copy, "model.layers.0.mlp.experts.9.up_proj.weight")),
        ("num_experts ", lambda: edit("num_experts", 4)), ("rope_theta", lambda: edit("rope_theta", 1e4)),
        ("torch_dtype", lambda: edit("torch_dtype", None)), ("auto_map", lambda: edit("auto_map", {})),
        ("SHA-256 of model.safetensors", lambda: flip(mean)),
    ]  # fmt: skip
    failed = 0
    for hint, damage in damages:
        damage()
        report = check(settings.seed, settings.expert, out, settings)
        found = any(hint in text for text in report.faults)
        print(f"damaged {hint:58} {'found' if found else 'NOT FOUND'}")
        failed |= not found
        (out / "model.safetensors").write_bytes(weights)
        (out / "config.json").write_bytes(config)
    return failed


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


# ---------------------------------------------------------------- main


def parse(words: list[str]):
    def expert(text: str) -> tuple[str, Path | None]:
        name, _, folder = text.partition("=")
        return name, None if folder == "random" else Path(folder)

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=Path, required=True)
    parser.add_argument("--expert", type=expert, action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", choices=("bam", "btx"), default="bam")
    parser.add_argument("--kv", choices=("expert", "shared"), default="expert")
    parser.add_argument("--shared-kv", choices=("mean", "seed"), default="mean")
    parser.add_argument("--no-seed-expert", action="store_true")
    parser.add_argument("--seed-copies", type=int, default=0)
    parser.add_argument("--preset", choices=("paper",))
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--attention-top-k", default="soft")
    parser.add_argument("--router-std", type=float, default=0.02)
    parser.add_argument("--router-dtype", choices=("BF16", "F16", "F32"), type=spell_dtype)
    parser.add_argument("--rng-seed", type=int, default=0)
    return parser.parse_args(words)


def spell_dtype(text: str) -> str:
    return {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}.get(text.lower(), text.upper())


def main() -> int:
    if "--self-test" in sys.argv[1:]:
        return self_test()
    settings = parse(sys.argv[1:])
    return check(settings.seed, settings.expert, settings.out, settings).print()


if __name__ == "__main__":
    sys.exit(main())
