#!/usr/bin/env python3
"""`--config` with mergekit's files against mergekit 0.1.5 itself, on random models.

    python mergekit.py BINARY FIXTURES    with the Python that has mergekit

Every tensor but the routers must have mergekit's bytes, and router rows must be near. Averages may differ where float32
cannot decide on which side of halfway a value is.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

PROMPTS = (["def mean(values):"], ["The court finds that"], ["The year 2024 had 366 days"])
# Family, output, what the file says beside models.
MIXTURES = [
    ("llama", {"gate_mode": "hidden", "dtype": "bfloat16"}),
    ("llama", {"gate_mode": "cheap_embed", "dtype": "float16"}),
    ("llama", {"gate_mode": "hidden_avg", "architecture": "qwen", "shared_experts": 1}),
    ("mistral", {"gate_mode": "hidden_last", "experts_per_token": 3}),
    ("qwen2", {"gate_mode": "hidden", "shared_experts": 1}),
    ("qwen3", {"gate_mode": "hidden_avg", "dtype": "float32"}),
]
AVERAGES = [([1.0, 1.0, 1.0], True), ([0.2, 0.5, 0.3], True), ([1.0, -1.0, 0.5], False)]
NEAR = 0.01


def main():
    binary, fixtures = sys.argv[1], Path(sys.argv[2])
    sys.path.append(str(fixtures))
    from make_mergekit import load, run

    work = Path(tempfile.mkdtemp(prefix="bam-mergekit-"))
    models = {}
    for family in {family for family, _ in MIXTURES}:
        for number, name in enumerate(("base", "code", "law")):
            models[family, name] = folder = work / f"{family}-{name}"
            init = [binary, "init", fixtures / family / "seed", "--out", folder, "--rng-seed", str(number), "--quiet"]
            subprocess.run([str(part) for part in init], check=True)
            for file in (fixtures / family / "seed").iterdir():
                if "token" in file.name and not (folder / file.name).exists():
                    shutil.copy(file, folder)

    def both(command, name, settings):
        file, theirs, ours = work / f"{name}.yaml", work / f"{name}-theirs", work / f"{name}-ours"
        file.write_text(json.dumps(settings))
        run(file, theirs)
        subprocess.run([binary, command, "--config", str(file), "--out", str(ours), "--quiet"], check=True)
        subprocess.run([binary, "validate", str(ours), "--against"], check=True, stdout=subprocess.DEVNULL)
        renamed = {}
        for tensor, value in load(ours).items():
            for old, new in (("block_sparse_moe", "mlp"), (".w1.", ".gate_proj."), (".w2.", ".down_proj."), (".w3.", ".up_proj.")):
                tensor = tensor.replace(old, new)
            renamed[tensor] = value
        expected = load(theirs)
        assert expected.keys() == renamed.keys(), expected.keys() ^ renamed.keys()
        return [(tensor, expected[tensor], renamed[tensor]) for tensor in sorted(expected)]

    for number, (family, settings) in enumerate(MIXTURES):
        experts = [
            {"source_model": str(models[family, name]), "positive_prompts": prompts}
            for name, prompts in zip(("base", "code", "law"), PROMPTS)
        ]
        settings = {"base_model": str(models[family, "base"]), "experts": experts} | settings
        if "shared_experts" in settings:
            settings["shared_experts"] = [experts[1] | {"positive_prompts": ["A mixture of experts"], "residual_scale": 0.7}]
        worst, count = 0.0, 0
        for tensor, theirs, ours in both("upcycle", f"mixture-{number}", settings):
            assert theirs.dtype == ours.dtype and theirs.shape == ours.shape, tensor
            if tensor.endswith(("mlp.gate.weight", "shared_expert_gate.weight")):
                worst = max(worst, (theirs.float() - ours.float()).abs().max().item())
            else:
                assert torch.equal(theirs.contiguous().view(torch.uint8), ours.contiguous().view(torch.uint8)), tensor
                count += 1
        assert worst < NEAR, worst
        print(f"{family:8} {settings['gate_mode']:12} {count} tensors equal, router rows within {worst:.1e}")
    for number, (weights, normalize) in enumerate(AVERAGES):
        names = ("base", "code", "law")
        listed = [{"model": str(models["llama", n]), "parameters": {"weight": w}} for n, w in zip(names, weights)]
        settings = {"merge_method": "linear", "models": listed, "parameters": {"normalize": normalize}}
        differing = elements = 0
        for tensor, theirs, ours in both("merge", f"linear-{number}", settings):
            apart = theirs != ours
            differing, elements = differing + int(apart.sum()), elements + theirs.numel()
            step = (theirs.float() - ours.float()).abs()[apart]
            assert (step <= theirs.float().abs()[apart] * 2**-6 + 1e-6).all(), tensor
        print(f"linear {weights} normalize {normalize}: {differing} of {elements} elements differ")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
