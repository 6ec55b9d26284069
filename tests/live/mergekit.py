#!/usr/bin/env python3
"""`--config` with mergekit's files against mergekit 0.1.5 itself, on random models.

    python mergekit.py BINARY FIXTURES    with the Python that has mergekit

Every tensor but the routers must have mergekit's bytes, and router rows must be near. Merges may differ by one step of
bfloat16 where float32 cannot decide on which side of halfway a value is. TIES may differ where magnitudes are equal: mergekit
keeps any of them.
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
SELF_ATTENTION = [{"filter": "self_attn", "value": [0.1, 0.9]}, {"value": 0.5}]
# Method, parameters of both models beside the base, parameters of all.
MERGES = [
    ("slerp", None, {"t": SELF_ATTENTION}),
    ("task_arithmetic", [{"weight": 0.5}, {"weight": SELF_ATTENTION}], {"lambda": 0.9}),
    ("task_arithmetic", [{"weight": 0.5}, {"weight": 0.7}], {"normalize": True}),
    ("ties", [{"weight": 0.5, "density": 0.4}, {"weight": [1, 0.3], "density": [0.2, 0.7]}], {}),
    ("ties", [{"weight": 0.5}, {"weight": 1}], {"density": 0.6, "normalize": False, "rescale": True, "int8_mask": True}),
    ("dare_linear", [{"weight": 0.5}, {"weight": 0.7}], {"density": 1}),
    ("dare_ties", [{"weight": 0.5}, {"weight": 0.7}], {"density": 1, "lambda": 0.8}),
    ("della", [{"weight": 0.5}, {"weight": 0.7}], {"density": 1}),
    ("model_stock", [{}, {}], {}),
    ("model_stock", [{}, {}], {"filter_wise": True}),
]
# Values of a merge that may be further away than one step, because magnitudes are equal.
MOST_TIES = 40


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
    base, code, law = (str(models["llama", name]) for name in ("base", "code", "law"))

    def compare(name, settings):
        near = far = elements = 0
        for _, theirs, ours in both("merge", name, settings | {"dtype": "float32", "out_dtype": "bfloat16"}):
            apart = (theirs.double() - ours.double()).abs()
            step = theirs.double().abs() / 128 + 1e-6
            near += int(((apart > 0) & (apart <= step)).sum())
            far += int((apart > step).sum())
            elements += theirs.numel()
        assert far <= (MOST_TIES if settings["merge_method"] == "ties" else 0) and near < elements / 200, (name, near, far)
        print(f"{name}: of {elements} values {near} differ by one step, {far} by more")

    for number, (method, of_models, of_all) in enumerate(MERGES):
        listed = [{"model": code}] if of_models is None else [
            {"model": model, "parameters": own} for model, own in zip((code, law), of_models)
        ]  # fmt: skip
        compare(f"{method}-{number}", {"merge_method": method, "base_model": base, "models": listed, "parameters": of_all})
    layers = len({name.split(".")[2] for name in load(Path(base)) if ".layers." in name})
    whole = [{"model": model, "layer_range": [0, layers]} for model in (base, law)]
    compare("slices", {"merge_method": "slerp", "base_model": base, "parameters": {"t": [0.2, 0.9]}, "slices": [
        {"sources": whole}, {"sources": whole, "parameters": {"t": 0.7}},
    ]})  # fmt: skip
    compare("passthrough", {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": code, "layer_range": [0, layers]}]},
        {"sources": [{"model": law, "layer_range": [layers - 1, layers], "parameters": {"scale": 0.3}}]},
    ]})  # fmt: skip
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
