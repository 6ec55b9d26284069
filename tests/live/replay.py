#!/usr/bin/env python3
"""Compute every tensor of a manifest again, in numpy, without a line of the project's code.

    python tests/live/replay.py FOLDER…

Follows docs/manifest.schema.json and docs/reference/random.md. Tensors that only move or scale numbers must be
equal bit for bit. Tensors with draws, means of many values or cube roots may be one unit in the last place off. Prints a row a folder; exits 1 on a fault.
"""

import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np
from recompute import Checkpoint, chacha20, decode, encode, normal, read_safetensors
from recompute import order as ordinals


def random_order(at: dict, extent: int) -> np.ndarray:
    key = hashlib.sha256(b"bam-convert rng v1\0" + struct.pack("<Q", at["seed"]) + at["key"].encode()).digest()
    order = np.argsort(chacha20(key, 2 * extent)[0::2], kind="stable")
    return order[at["start"] : at["start"] + at["length"]]


def along(axis: int, entries: np.ndarray) -> tuple:
    return (slice(None),) * axis + (entries,)


class Replay:
    def __init__(self, folder: Path):
        self.manifest = json.loads((folder / "bam-manifest.json").read_text())
        self.sources = {}
        for record in self.manifest["sources"]:
            path = folder / record["path"]
            tensors = Checkpoint(path).tensors if path.is_dir() else read_safetensors(path)
            self.sources[record["name"]] = tensors
        self.exact = True

    def tensor(self, name: str) -> np.ndarray:
        self.name, self.exact = name, True
        record = self.manifest["tensors"][name]
        values = self.values(record["expression"], tuple(record["shape"]))
        assert values.shape == tuple(record["shape"]), (name, values.shape)
        return encode(np.ascontiguousarray(values).reshape(-1), record["dtype"])

    def drawn(self, seed: int, key: str, shape: tuple) -> np.ndarray:
        self.exact = False
        return normal(seed, key, int(np.prod(shape)), 1.0).reshape(shape)

    def values(self, e: dict, shape: tuple | None) -> np.ndarray:
        of = e.get("of")
        match e["op"]:
            case "copy":
                dtype, stored, raw = self.sources[e["source"]][e["tensor"]]
                return decode(raw, dtype).reshape(stored)
            case "cast":
                return self.values(of, shape)
            case "mean":
                parts = [self.values(part, shape) for part in of]
                return sum(parts[1:], parts[0]) / len(parts)
            case "slice":
                entries = np.arange(e["start"], e["start"] + e["length"])
                return self.values(of, None)[along(e["axis"], entries)]
            case "concat":
                return np.concatenate([self.values(part, None) for part in of], axis=e["axis"])
            case "stack":
                return np.stack([self.values(part, shape and shape[1:]) for part in of])
            case "gather":
                whole, at = self.values(of, None), e["at"]
                return whole[along(at["axis"], random_order(at, whole.shape[at["axis"]]))]
            case "repeat":
                rows = shape[0] // (e["each"] * e["times"])
                part = np.repeat(self.values(of, (rows, *shape[1:])), e["each"], axis=0)
                return np.concatenate([part] * e["times"])
            case "scale":
                return e["by"] * self.values(of, shape)
            case "add_noise":
                whole = self.values(of, shape).copy()
                noise = e["std"] * self.drawn(e["seed"], e["key"], whole.shape)
                at = e.get("at")
                place = along(at["axis"], random_order(at, whole.shape[at["axis"]])) if at else ...
                whole[place] += noise[place]
                return whole
            case "redraw":
                whole, at = self.values(of, shape).copy(), e["at"]
                place = along(at["axis"], random_order(at, whole.shape[at["axis"]]))
                mean, std = (0.0, e["std"]) if "std" in e else (whole[place].mean(), whole[place].std())
                whole[place] = mean + std * self.drawn(e["seed"], e["key"], whole.shape)[place]
                return whole
            case "normal":
                return e["std"] * self.drawn(e["seed"], self.name, shape)
            case "constant":
                return np.full(shape, e["value"])
            case "identity":
                return np.eye(shape[0])
        raise SystemExit(f"{self.name}: no rule for {e['op']}")


def main() -> int:
    faults = 0
    for folder in map(Path, sys.argv[1:]):
        replay, out = Replay(folder), Checkpoint(folder)
        equal = last_place = 0
        for name, (dtype, _, raw) in out.tensors.items():
            expected = replay.tensor(name)
            if np.array_equal(expected, raw):
                equal += 1
                continue
            off = np.abs(ordinals(expected, dtype) - ordinals(np.ascontiguousarray(raw), dtype))
            if replay.exact or off.max() > 1:
                faults += 1
                print(f"FAULT {folder}: {name}: {np.count_nonzero(off)} values differ, by {off.max()} units at most")
            else:
                last_place += 1
        print(f"{folder}: {len(out.tensors)} tensors, {equal} equal, {last_place} within a unit in the last place")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
