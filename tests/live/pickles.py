#!/usr/bin/env python3
"""Files of `torch.save` as bam-convert and as `torch.load` read them, bit by bit.

    python tests/live/pickles.py --binary target/release/bam-convert [FOLDER…]

needs torch and safetensors. Checked are the tensors of `fixtures/make_pytorch.py` in both layouts of `torch.save` and in every
pickle protocol, and each FOLDER with safetensors, saved again as `pytorch_model.bin`.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures"))
import make_pytorch


def read(folder: Path) -> dict:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({key: file.get_tensor(key) for key in file.keys()})
    return found


def differing(binary: Path, source: Path, out: Path, expected: dict) -> list[str]:
    """Names of tensors that bam-convert reads otherwise."""
    subprocess.run([str(binary), "convert", str(source), str(out), "--force"], check=True, capture_output=True)
    found = read(out)
    bits = lambda tensor: tensor.contiguous().reshape(-1).view(torch.uint8)
    same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))
    other = sorted(found.keys() ^ expected.keys())
    return other + [name for name in found.keys() & expected.keys() if not same(found[name], expected[name])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    cases = []
    for name, is_zip in [("zip", True), ("old", False)]:
        dtypes = make_pytorch.DTYPES + (make_pytorch.FLOAT8 if is_zip else [])
        for protocol in [2, 3, 4, 5]:
            settings = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": is_zip}
            cases.append((f"{name}, protocol {protocol}, dtypes", make_pytorch.every_dtype(dtypes), settings))
            cases.append((f"{name}, protocol {protocol}, views", make_pytorch.views(), settings))
    cases += [(str(folder), read(folder), {}) for folder in arguments.folders]

    faults = 0
    for name, tensors, settings in cases:
        with tempfile.TemporaryDirectory() as work:
            path = Path(work) / "pytorch_model.bin"
            torch.save(tensors, path, **settings)
            expected = torch.load(path, weights_only=False)  # made here; the other way reads two protocols only
            other = differing(arguments.binary, path, Path(work) / "out", expected)
        faults += bool(other)
        print(f"{name}: {len(tensors)} tensors, {'FAULT in ' + ', '.join(other) if other else 'equal'}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
