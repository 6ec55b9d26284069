#!/usr/bin/env python3
"""A mixture of real specialists works before it is trained.

    python tests/live/untrained.py BINARY SmolLM2.gguf [--work FOLDER] [--steps 200]     (the standard library only)

Two specialists of SmolLM2-135M are trained 200 steps at 1e-4, each on the texts of one domain of the quickstart. A step has
1 x 128 tokens, so that two cores take minutes. Then a BAM and a BTX are made with the defaults. Checks:

- each specialist is at least 3 % below the seed's perplexity in its domain;
- each untrained mixture is at most at 1.05 of the mean of its dense models in each domain;
- greedy continuations of five prompts have at most twice the perplexity under the seed that the seed's own have.

The paper's preset is measured beside them. Finished parts of the work folder are kept and used again.
"""

import argparse
import array
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOMAINS = ["code", "math"]
PROMPTS = [
    "The capital of France is",
    "Water boils at a temperature of",
    "In the morning, she opened the window and",
    "The most important thing about friendship is",
    "A computer program is a set of",
]


class Bench:
    def __init__(self, binary, work):
        self.binary, self.work = binary, work

    def run(self, *arguments):
        command = [str(self.binary), *map(str, arguments)]
        done = subprocess.run(command, cwd=self.work, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"exit code {done.returncode}: {' '.join(command)}")
        return done.stdout

    def make(self, out, *arguments):
        if not (self.work / out).exists():
            self.run(*arguments, "--out", out)

    def perplexities(self, models):
        data = [word for name in DOMAINS for word in ("--data", f"{name}=tokens/{name}")]
        found = json.loads(self.run("eval", *models, *data, "--context", 256, "--max-tokens", 2048, "--json"))
        return {
            model["name"]: {domain["domain"]: domain["perplexity"] for domain in model["domains"]}
            for model in found["models"]
        }

    def prompt_ids(self):
        """The token ids of each prompt, out of a token folder of the prompts."""
        lines = "".join(json.dumps({"text": prompt}) + "\n" for prompt in PROMPTS)
        (self.work / "prompts.jsonl").write_text(lines)
        self.make("prompts", "tokenize", "prompts.jsonl", "--tokenizer", "seed", "--validation", 0)
        ids, ends = array.array("H"), array.array("Q")
        ids.frombytes((self.work / "prompts/train-00000.bin").read_bytes())
        ends.frombytes((self.work / "prompts/train-00000.ends").read_bytes())
        starts = [0, *ends[:-1]]
        # Without the end of the text.
        return [list(ids[start : end - 1]) for start, end in zip(starts, ends)]

    def continuations(self, model):
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        return json.loads(self.run("generate", model, *prompts, "--max-tokens", 32, "--json"))

    def under_the_seed(self, prompts, answers):
        """The perplexity under the seed of all continuations together."""
        nll, count = 0.0, 0
        for prompt, answer in zip(prompts, answers):
            assert len(prompt) == answer["prompt_tokens"], (prompt, answer)
            ids = prompt + answer["ids"]
            (self.work / "ids.json").write_text(json.dumps(ids))
            (self.work / "logits.safetensors").unlink(missing_ok=True)
            self.run("logits", "seed", "--tokens", "ids.json", "--dump", "logits.safetensors")
            data = (self.work / "logits.safetensors").read_bytes()
            header = int.from_bytes(data[:8], "little")
            logits = array.array("f")
            logits.frombytes(data[8 + header :])
            width = len(logits) // len(ids)
            for at in range(len(prompt), len(ids)):
                row = logits[(at - 1) * width : at * width]
                top = max(row)
                nll += top + math.log(sum(math.exp(x - top) for x in row)) - row[ids[at]]
                count += 1
        return math.exp(nll / count)


def answers_of(found):
    return found if isinstance(found, list) else [found]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    work = (arguments.work or Path(tempfile.mkdtemp(prefix="bam-untrained-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments.binary.resolve(), work)

    if not (work / "seed").exists():
        bench.run("convert", arguments.gguf.resolve(), "seed")
    for name in DOMAINS:
        texts = ROOT / f"recipes/quickstart/texts/{name}.jsonl"
        bench.make(f"tokens/{name}", "tokenize", texts, "--tokenizer", "seed", "--validation", 0.1)
        settings = ["--steps", arguments.steps, "--batch", 1, "--seq", 128, "--learning-rate", 1e-4, "--validate-every", 0]
        # A run that was stopped continues.
        settings += ["--resume"] if (work / f"{name}.run").exists() else []
        bench.make(name, "train", "seed", "--data", f"{name}=tokens/{name}", *settings)
    experts = [word for name in DOMAINS for word in ("--expert", f"{name}={name}")]
    for out, *settings in (["bam", "--method", "bam"], ["btx", "--method", "btx"], ["paper", "--method", "bam", "--preset", "paper"]):
        bench.make(out, "upcycle", *settings, "--seed", "seed", *experts)

    failures = []

    def check(what, found, limit):
        print(f"{'ok  ' if found <= limit else 'FAIL'} {what}: {found:.3f}, at most {limit:.3f}", flush=True)
        if found > limit:
            failures.append(what)

    scores = bench.perplexities(["seed", *DOMAINS, "bam", "btx", "paper"])
    for name, found in scores.items():
        print(f"{name:6}", *(f"{domain} {value:10.3f}" for domain, value in found.items()))
    for name in DOMAINS:
        check(f"{name} specialist on {name}", scores[name][name], 0.97 * scores["seed"][name])
        mean = sum(scores[model][name] for model in ["seed", *DOMAINS]) / (1 + len(DOMAINS))
        for mixture in ["bam", "btx"]:
            check(f"untrained {mixture} on {name}", scores[mixture][name], 1.05 * mean)

    prompts = bench.prompt_ids()
    own = None
    for model in ["seed", "bam", "btx"]:
        answers = answers_of(bench.continuations(model))
        found = bench.under_the_seed(prompts, answers)
        own = own or found
        check(f"continuations by {model} under the seed", found, 2 * own)
        for prompt, answer in zip(PROMPTS, answers):
            print(f"     {prompt}|{answer['text']!r}")
    sys.exit(1 if failures else 0)


main()
