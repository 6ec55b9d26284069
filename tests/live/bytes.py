#!/usr/bin/env python3
"""Compare what two builds of bam-convert write.

    python tests/live/bytes.py OLD NEW      (the standard library only)

Runs every writing command on the fixtures with both binaries and compares the SHA-256 of each file. Routing is spelled out, so that
versions with other defaults can be compared. Use it around a change that must
not change any byte. Pass `--but README.md` for each name that may differ, such as model cards and the Python that ships.
Manifests are then compared without the sizes and hashes of these files and of other manifests.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "cohere"]
MIXTURES = [path.name for path in sorted((FIXTURES / "mixtures").iterdir()) if path.is_dir()]
MANIFEST = "bam-manifest.json"
TRAIN = ["--data", "x=tokens", "--steps", "3", "--batch", "2", "--seq", "16", "--threads", "1", "--validate-every", "0"]


# Spelled out, because versions have other defaults.
ROUTING = ["--top-k", "2", "--norm-topk-prob", "true"]
RECIPE = f"""\
variables:
  seed: {FIXTURES}/hostile/good
stages:
  - name: tokens
    tokenize: {{tokenizer: "${{seed}}", paths: "{FIXTURES}/written-by-0.1/recipe/texts.jsonl", validation: 0.25, out: tokens}}
  - name: branches
    branch: {{seed: "${{seed}}", into: "code,law", out: branches}}
  - name: bam
    upcycle: {{method: bam, top-k: 2, norm-topk-prob: true, seed: "${{seed}}", expert: {{code: branches/code, law: branches/law}}, out: bam}}
"""


def upcycle(family: str, out: str, *flags: str) -> list[str]:
    seed, flags = FIXTURES / family, (*flags, *ROUTING)
    return ["upcycle", "--seed", f"{seed}/seed", "--expert", f"code={seed}/code", "--expert", f"law={seed}/law", *flags, "--out", out]


def commands() -> dict[str, list[str]]:
    """Each command under a name; later ones read what earlier ones wrote."""
    llama = FIXTURES / "llama"
    made: dict[str, list[str]] = {
        "texts": ["tokenize", str(FIXTURES / "written-by-0.1/recipe/texts.jsonl"), "--tokenizer", f"{llama}/seed", "--validation", "0.25", "--out", "tokens"],
        "vocabulary": ["tokenize", str(FIXTURES / "written-by-0.1/recipe/texts.jsonl"), "--tokenizer", "train:300", "--out", "own-tokens"],
        "branch": ["branch", f"{llama}/seed", "--into", "a,b", "--out", "branches"],
        "merge": ["merge", "--model", f"{llama}/code:1", "--model", f"{llama}/law:3", "--out", "merged"],
        "shards": ["convert", f"{llama}/seed", "shards", "--max-shard-size", "50KB"],
        "npz": ["convert", f"{llama}/seed", "npz", "--to", "npz"],
    }
    for dtype in ["f32", "f16", "bf16"]:
        made[f"cast-{dtype}"] = ["convert", f"{llama}/seed", f"cast-{dtype}", "--dtype", dtype]
    for family in FAMILIES:
        config = str(FIXTURES / family / "seed/config.json")
        made[f"init-{family}"] = ["init", config, "--out", f"init-{family}"]
        for kv in ["expert", "shared"]:
            made[f"bam-{family}-{kv}"] = upcycle(family, f"bam-{family}-{kv}", "--method", "bam", "--kv", kv)
        made[f"btx-{family}"] = upcycle(family, f"btx-{family}", "--method", "btx")
    for family in ["llama", "mistral"]:
        made[f"gguf-{family}"] = ["convert", str(FIXTURES / family / "seed"), f"gguf-{family}", "--to", "gguf"]
    for target in ["mixtral", "qwen2_moe", "qwen3_moe"]:
        family = {"mixtral": "mistral", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3"}[target]
        made[f"target-{target}"] = upcycle(family, f"target-{target}", "--method", "btx", "--target", target)
        made[f"fused-{target}"] = ["convert", f"target-{target}", f"fused-{target}", "--layout", "fused"]
    one = ["--seed", f"{llama}/seed", "--rng-seed", "7"]
    for method, flags in {
        "sparse": [],
        "noise": [],
        "drop": [],
        "granular": ["--granularity", "2"],
        "shuffle": ["--expert-width", "24"],
        "split": [],
    }.items():
        made[f"method-{method}"] = ["upcycle", "--method", method, *one, "--experts", "4", *flags, *ROUTING, "--out", f"method-{method}"]
    for router in ["uniform", "orthogonal", "normal:0.5"]:
        made[f"router-{router}"] = upcycle("llama", f"router-{router}", "--method", "bam", "--router", router)
    made |= {
        "add": ["expert", "add", "bam-llama-expert", "--expert", f"third={llama}/code", "--out", "added"],
        "remove": ["expert", "remove", "bam-llama-expert", "law", "--out", "removed"],
        "replace": ["expert", "replace", "bam-llama-expert", f"code={llama}/law", "--out", "replaced"],
        "extract": ["expert", "extract", "bam-llama-expert", "code", "--out", "extracted"],
    }
    for mixture in MIXTURES:
        made[f"mixture-{mixture}"] = ["convert", str(FIXTURES / "mixtures" / mixture), f"mixture-{mixture}"]
    for gguf in sorted((FIXTURES / "gguf").glob("llama-*.gguf")):
        made[f"from-{gguf.stem}"] = ["convert", str(gguf), f"from-{gguf.stem}"]
    for checkpoint in [f"{llama}/seed", "bam-llama-expert", "bam-llama-shared", "btx-llama", "bam-cohere-expert", "target-mixtral"]:
        name = checkpoint.removeprefix(str(FIXTURES)).strip("/").replace("/", "-")
        made[f"train-{name}"] = ["train", checkpoint, *TRAIN, "--out", f"trained-{name}"]
        made[f"logits-{name}"] = ["logits", checkpoint, "--tokens", str(FIXTURES / "golden/tokens.json"), "--dump", f"{name}.safetensors"]
    made |= {
        "eval": ["eval", f"{llama}/seed", "bam-llama-expert", "--data", "x=tokens", "--report-routing", "--json"],
        "diff": ["diff", "bam-llama-expert", f"{llama}/seed", "--json"],
        "cost": ["cost", f"{llama}/seed", "--method", "bam", "--experts", "4", "--top-k", "2", "--json"],
        "inspect": ["inspect", "bam-llama-expert", "--tensors", "--json"],
        "recipe": ["run", "recipe.yaml", "--work", "work"],
    }
    return made


def without_hashes(value, names: set[str]):
    """A manifest without sizes and hashes of files of those names, wherever it lists files."""
    if isinstance(value, list):
        return [without_hashes(item, names) for item in value]
    if not isinstance(value, dict):
        return value
    left_out = {"parent_manifest"}
    if Path(str(value.get("path", ""))).name in names:
        left_out |= {"size", "sha256"}
    # A stage of a recipe lists hashes by path.
    left_out |= {key for key in value if Path(key).name in names}
    return {key: without_hashes(item, names) for key, item in value.items() if key not in left_out}


def content(path: Path, but: list[str]) -> bytes:
    """The bytes that are compared."""
    if path.name != MANIFEST or not but:
        return path.read_bytes()
    return json.dumps(without_hashes(json.loads(path.read_text()), {*but, MANIFEST})).encode()


def write(binary: Path, folder: Path, but: list[str]) -> dict[str, str]:
    """Runs all commands; returns SHA-256 by file, and of what each command printed."""
    sums = {}
    (folder / "recipe.yaml").write_text(RECIPE)
    for name, command in commands().items():
        done = subprocess.run([binary, *command], cwd=folder, capture_output=True)
        sums[f"exit code of {name}"] = str(done.returncode)
        if name != "recipe":  # prints times
            sums[f"output of {name}"] = sha256(done.stdout).hexdigest()
        if done.returncode > 1:
            print(f"{name}: {done.stderr.decode()[-300:]}")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".run/" not in str(path) and ".bam-run" not in str(path):
            sums[str(path.relative_to(folder))] = sha256(content(path, but)).hexdigest()
    return sums


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path, help="a binary, or a file of sums that --save wrote")
    parser.add_argument("new", type=Path, nargs="?")
    parser.add_argument("--save", type=Path, help="write the sums of OLD to this file")
    parser.add_argument("--but", action="append", default=[], help="a file name that may differ")
    arguments = parser.parse_args()
    sums = []
    for binary in [arguments.old, arguments.new]:
        if binary is None:
            continue
        if binary.suffix == ".json":
            sums.append(json.loads(binary.read_text()))
            continue
        # The same folder for both: outputs may name it.
        folder = Path(tempfile.gettempdir()) / "bam-convert-bytes"
        folder.mkdir()
        try:
            sums.append(write(binary.resolve(), folder, arguments.but))
        finally:
            shutil.rmtree(folder)
    if arguments.save:
        arguments.save.write_text(json.dumps(sums[0], indent=1))
    if len(sums) < 2:
        print(f"{len(sums[0])} sums")
        return
    old, new = sums
    different = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    faults = [name for name in different if Path(name).name not in arguments.but]
    for name in different:
        print(f"{'differs' if name in faults else 'may differ'}: {name}")
    print(f"{len(old)} sums, {len(different)} differ, {len(faults)} of them must not")
    raise SystemExit(bool(faults))


main()
