#!/usr/bin/env python3
"""`BASE+ADAPTER` against PEFT's `merge_and_unload`, and against the sums in float64.

    python tests/live/adapters.py --binary target/release/bam-convert --fixtures fixtures

needs peft 0.19 or newer, torch, transformers and safetensors. Each case of `fixtures/adapters/golden.json` is written with
`convert`. Every tensor must equal the sum of `fixtures/make_adapters.py` bit for bit, where the adapters change it, and the
base where they do not. PEFT computes in the dtypes of the base and the factors, and rounds more often. So its values may be one step away for each
adapter: the step of the dtype at the sum of the absolute values of all terms.
"""

import argparse
import sys
import tempfile
import subprocess
from pathlib import Path

import numpy
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures"))
import make_adapters


def read(folder: Path) -> dict:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found.update({key: file.get_tensor(key) for key in file.keys()})
    return found


def merged(base: Path, adapters: list[Path]) -> dict:
    model = AutoModelForCausalLM.from_pretrained(base)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return model.state_dict()


def step(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance of neighbouring numbers of the dtype, at these values."""
    _, exponent = torch.frexp(values.to(torch.float64))
    return torch.finfo(dtype).eps * 2.0 ** (exponent.to(torch.float64) - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--fixtures", type=Path, required=True)
    arguments = parser.parse_args()
    faults = 0
    for name, base, adapters in make_adapters.CASES:
        base = arguments.fixtures / base
        adapters = [arguments.fixtures / "adapters" / adapter for adapter in adapters]
        with tempfile.TemporaryDirectory() as work:
            out = Path(work) / "out"
            text = "+".join(str(path) for path in [base, *adapters])
            subprocess.run([str(arguments.binary), "convert", text, str(out)], check=True, capture_output=True)
            found, stored = read(out), read(base)
        sizes = {}
        wanted = {key: make_adapters.rounded(*value) for key, value in make_adapters.summed(base, adapters, sizes).items()}
        bits = lambda tensor: tensor.contiguous().view(torch.uint8)
        other = [key for key in stored if not torch.equal(bits(found[key]), bits(wanted.get(key, stored[key])))]
        other += sorted(found.keys() ^ stored.keys())

        peft, worst = merged(base, adapters), 0.0
        for key in wanted:
            ours, theirs, before = (tensors[key].to(torch.float64) for tensors in (found, peft, stored))
            size = torch.maximum(torch.as_tensor(sizes.get(key, 0)), torch.maximum(before.abs(), ours.abs()))
            steps = (ours - theirs).abs() / step(size, found[key].dtype)
            worst = max(worst, float(steps.max()))
        if worst > len(adapters):
            other.append(f"{worst:.2f} steps from PEFT")
        faults += bool(other)
        verdict = "FAULT in " + ", ".join(other) if other else "equal to float64"
        print(f"{name}: {len(wanted)} of {len(stored)} tensors changed, {verdict}; at most {worst:.2f} steps from PEFT")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
