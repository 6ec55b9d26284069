#!/usr/bin/env python3
"""Archives of `bam-convert convert --to npz` as numpy reads them.

    python tests/live/npz.py --binary target/release/bam-convert SOURCE…

needs numpy, torch and safetensors. Each SOURCE (a folder, or a GGUF file) is written as an archive, and read with
`numpy.load`, which checks each entry's sum. Names, shapes, dtypes and values must equal what the safetensors library reads from
the folder, with bfloat16 as float32.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import torch
from safetensors import safe_open


def read_folder(folder: Path) -> dict[str, numpy.ndarray]:
    arrays = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                arrays[name] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return arrays


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("sources", nargs="+", type=Path)
    arguments = parser.parse_args()
    faults = 0
    for source in arguments.sources:
        with tempfile.TemporaryDirectory() as work:
            archive, folder = Path(work) / "model.npz", source
            narrow = ["--dtype", "f32"] if source.is_file() else []  # values of blocks, taken to float32 in both
            command = [arguments.binary, "convert", source, archive, "--to", "npz", *narrow]
            subprocess.run([str(word) for word in command], check=True, capture_output=True)
            if source.is_file():
                folder = Path(work) / "folder"
                command = [arguments.binary, "convert", source, folder, *narrow]
                subprocess.run([str(word) for word in command], check=True, capture_output=True)
            expected = read_folder(folder)
            with numpy.load(archive, allow_pickle=False) as found:
                other = sorted(expected.keys() ^ set(found.files))
                for name in expected.keys() & set(found.files):
                    array, wanted = found[name], expected[name]
                    same = array.dtype == wanted.dtype and array.shape == wanted.shape and array.flags.c_contiguous
                    if not same or array.tobytes() != wanted.tobytes():
                        other.append(name)
            faults += len(other)
            print(f"{source}: {len(expected)} arrays{', FAULT in ' + ', '.join(other) if other else ', all equal'}")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
