#!/usr/bin/env python3
"""mergekit-moe and `bam-convert upcycle --config` on the same file, one after the other.

    python benches/mergekit.py BINARY [--mergekit FOLDER] [--work FOLDER] [--rounds N] [--gate-mode random|hidden|cheap_embed]

makes three random Llama models of 0.6 billion bfloat16 parameters below --work (3.6 GB, kept), and a file of three experts.
It runs both programs --rounds times with inputs in the page cache. FOLDER is where mergekit's scripts are, by default those beside this
Python. Prints JSON: for each program the seconds of each run, the seconds with a `sync` after it, and the most anonymous
memory in MiB, of processes sampled every 10 ms.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

FIXTURE = Path(__file__).resolve().parent.parent / "fixtures" / "llama" / "seed"
CONFIG = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=1536, intermediate_size=4096, num_hidden_layers=20,
    num_attention_heads=24, num_key_value_heads=6, vocab_size=32000, rms_norm_eps=1e-5, rope_theta=10000.0,
    max_position_embeddings=2048, tie_word_embeddings=False, hidden_act="silu", torch_dtype="bfloat16", bos_token_id=0,
    eos_token_id=2, initializer_range=0.02,
)  # fmt: skip
PROMPTS = {"base": "The year 2024 had 366 days", "code": "def mean(values):", "law": "The court finds that"}


def prepare(binary: Path, work: Path, gate_mode: str) -> Path:
    for number, name in enumerate(PROMPTS):
        folder = work / name
        if folder.exists():
            continue
        (work / "config.json").write_text(json.dumps(CONFIG))
        command = [binary, "init", work / "config.json", "--out", folder, "--rng-seed", str(number)]
        subprocess.run([str(part) for part in command], check=True)
        for file in FIXTURE.glob("*token*"):
            shutil.copy(file, folder)
    experts = [{"source_model": str(work / name), "positive_prompts": [prompt]} for name, prompt in PROMPTS.items()]
    file = work / "moe.yaml"
    file.write_text(json.dumps(dict(base_model=str(work / "base"), gate_mode=gate_mode, dtype="bfloat16", experts=experts)))
    return file


def anonymous(process: int) -> int:
    """Anonymous memory in KiB; nothing where the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def timed(command: list, out: Path) -> dict:
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    most, start = 0, time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, anonymous(process.pid))
        time.sleep(0.01)
    wall = time.perf_counter() - start
    assert process.returncode == 0, command
    os.sync()
    return {"wall": wall, "synced": time.perf_counter() - start, "anonymous_mib": most / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("--mergekit", type=Path, default=Path(sys.executable).parent)
    parser.add_argument("--work", type=Path, default=Path("target/bench-mergekit"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gate-mode", default="random")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    file = prepare(options.binary, work, options.gate_mode)
    theirs, ours, copied = work / "theirs", work / "ours", work / "copied"
    commands = {
        "mergekit": ([options.mergekit / "mergekit-moe", file, theirs], theirs),
        "bam-convert": ([options.binary, "upcycle", "--config", file, "--out", ours, "--quiet"], ours),
        "cp": (["cp", "-r", ours, copied], copied),
    }
    for name in PROMPTS:
        for weights in (work / name).glob("*.safetensors"):
            subprocess.run(["cat", str(weights)], stdout=subprocess.DEVNULL, check=True)
    results = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, (command, out) in commands.items():
            results[name].append(timed(command, out))
    medians = {name: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for name, runs in results.items()}
    print(json.dumps({"medians": medians, "runs": results}, indent=1))
    for folder in (theirs, ours, copied):
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
