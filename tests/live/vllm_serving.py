#!/usr/bin/env python3
"""Mixtures of the binary in vLLM: the same greedy tokens and log-probabilities as the binary has.

    python tests/live/vllm_serving.py --binary target/release/bam-convert [--seed DIR] [--only REGEX] [--mode eager|compiled] [--work DIR]

needs vLLM 0.32 (its CPU build is enough) and the plugin of packaging/bam-vllm. Trains tiny mixtures with the binary: BTX, BAM
with keys and values per expert, BAM with shared ones, and one for each feature that an engine may get wrong. --seed adds mixtures
of a real model and two altered copies of it. vLLM serves each in float32: 8 prompts in one batch, each alone, and all again with
their prefixes cached. Compared are 64 greedy tokens of each prompt with `generate`, and the log-probabilities of the 20 best tokens
at each position with `logits`. BTX runs without the plugin, too. With two experts' routers swapped, vLLM must differ.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOLERANCE = 2e-4
ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = ROOT / "fixtures/llama/seed"
BEST = 20
NEW_TOKENS = 64
CONTEXT = 512

# Sizes that vLLM's attention on the CPU has kernels for.
SHAPE = dict(
    vocab_size=384, hidden_size=96, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    head_dim=32, max_position_embeddings=CONTEXT, initializer_range=0.2, tie_word_embeddings=True, bos_token_id=0,
    eos_token_id=2, pad_token_id=0, hidden_act="silu", rms_norm_eps=1e-5, dtype="float32", torch_dtype="float32",
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, rope_theta=10000.0,
)  # fmt: skip
FAMILIES = {
    "llama": dict(model_type="llama", tie_word_embeddings=False),
    "llama3": dict(model_type="llama", rope_parameters=dict(
        rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )),
    "qwen3": dict(model_type="qwen3"),
    "qwen2": dict(model_type="qwen2", use_sliding_window=True, sliding_window=24, max_window_layers=1),
    "cohere": dict(model_type="cohere", layer_norm_eps=1e-5, logit_scale=0.25, use_qk_norm=True),
    "gemma2": dict(
        model_type="gemma2", hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=24, sliding_window=24,
        attn_logit_softcapping=20.0, final_logit_softcapping=10.0,
    ),
    "granite": dict(
        model_type="granite", embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.2, logits_scaling=2.0,
    ),
    "gpt_neox": dict(
        model_type="gpt_neox", layer_norm_eps=1e-5, hidden_act="gelu", rotary_pct=0.25, use_parallel_residual=True,
        attention_bias=True, num_key_value_heads=4,
    ),
}  # fmt: skip
BAM, SHARED, BTX = ["--method", "bam"], ["--method", "bam", "--kv", "shared"], ["--method", "btx"]
SIGMOID = ["--attention-gate", "sigmoid"]
MIXTURES = {
    "btx": ("llama", BTX),
    "bam": ("llama", BAM),
    "bam shared": ("llama", SHARED),
    "bam sigmoid": ("llama", [*BAM, *SIGMOID]),
    "bam sigmoid shared": ("llama", [*SHARED, *SIGMOID]),
    "bam paper": ("llama3", [*BAM, "--preset", "paper"]),
    "bam qwen3": ("qwen3", BAM),
    "bam windows": ("qwen2", SHARED),
    "bam cohere": ("cohere", BAM),
    "bam gemma2": ("gemma2", BAM),
    "bam granite": ("granite", SHARED),
    "bam gpt_neox": ("gpt_neox", BAM),
    "bam adapters": ("llama", [*BAM, "--adapters"]),
    "btx choice": ("llama", [*BTX, "--router-bias", "choice"]),
    "btx qwen3": ("qwen3", BTX),
}


# ---------------------------------------------------------------- making mixtures


def run(*words):
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


class Maker:
    """Makes mixtures in a folder with the binary."""

    def __init__(self, binary, work):
        self.binary, self.work = binary, work
        self.tokens = work / "tokens"
        if self.tokens.exists():
            return
        run(binary, "tokenize", "--tokenizer", TOKENIZER, "--validation", 0, "--out", self.tokens, ROOT / "docs/guides")

    def trained(self, checkpoint, out, steps, rng_seed):
        words = ["--data", f"text={self.tokens}", "--steps", steps, "--batch", 4, "--seq", 64, "--learning-rate", 3e-3]
        words += ["--rng-seed", rng_seed, "--save-every", 0, "--validate-every", 0]
        run(self.binary, "train", checkpoint, *words, "--out", out)
        return out

    def family(self, name):
        """A seed of a family and two specialists."""
        folder = self.work / name
        if not folder.exists():
            start = folder / "start"
            start.mkdir(parents=True)
            for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                shutil.copy(TOKENIZER / file, start)
            (start / "config.json").write_text(json.dumps({**SHAPE, **FAMILIES[name]}))
            run(self.binary, "init", start, "--out", folder / "seed")
            for rng_seed, expert in enumerate(("code", "law")):
                self.trained(folder / "seed", folder / expert, 8, rng_seed)
        return folder

    def mixture(self, name):
        if (out := self.work / name.replace(" ", "-")).exists():
            return out
        family, options = MIXTURES[name]
        folder, start = self.family(family), self.work / f"{name}-start".replace(" ", "-")
        experts = [part for e in ("code", "law") for part in ("--expert", f"{e}={folder / e}")]
        run(self.binary, "upcycle", *options, "--router", "normal:0.5", "--seed", folder / "seed", *experts, "--out", start)
        return self.trained(start, out, 8, 7)

    def real(self, seed, name):
        """A mixture of a real model and two altered copies."""
        for number, expert in enumerate(("code", "law"), 1):
            if not (self.work / f"real-{expert}").exists():
                noise = self.work / f"noise-{expert}"
                run(self.binary, "init", seed, "--out", noise, "--rng-seed", number)
                run(self.binary, "merge", "--model", f"{seed}:0.95", "--model", f"{noise}:0.05", "--out", self.work / f"real-{expert}")
        experts = [part for e in ("code", "law") for part in ("--expert", f"{e}={self.work / f'real-{e}'}")]
        out = self.work / name.replace(" ", "-")
        if out.exists():
            return out
        run(self.binary, "upcycle", *REAL[name], "--router", "normal:0.3", "--seed", seed, *experts, "--out", out)
        return out


REAL = {"real btx": BTX, "real bam": BAM, "real bam shared": SHARED}


def swapped(folder):
    """A copy whose first two experts have each other's routers."""
    from safetensors.torch import load_file, save_file

    out = folder.with_name(f"{folder.name}-swapped")
    shutil.copytree(folder, out, dirs_exist_ok=True)
    merged = json.loads((out / "config.json").read_text())["attention_kv"] == "merged"
    kind = ".mlp.router." if merged else ".self_attn.router."
    for shard in out.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if kind in name:
                tensors[name] = tensor[[1, 0, *range(2, len(tensor))]].contiguous()
        save_file(tensors, shard, {"format": "pt"})
    return out


# ---------------------------------------------------------------- in vLLM


def serve(job):
    """Answers of vLLM; runs in a process of its own."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=job["folder"], trust_remote_code=True, dtype="float32", max_model_len=CONTEXT, enforce_eager=job["mode"] == "eager",
        enable_prefix_caching=True, seed=0,
    )  # fmt: skip
    settings = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, logprobs=BEST)

    def ask(prompts):
        answers = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], settings, use_tqdm=False)
        return [
            {
                "ids": list(answer.outputs[0].token_ids),
                "best": [{str(token): one.logprob for token, one in at.items()} for at in answer.outputs[0].logprobs],
                "cached": answer.num_cached_tokens,
            }
            for answer in answers
        ]

    found = {"batch": ask(job["prompts"])}
    if job["more"]:
        llm.reset_prefix_cache()
        found["alone"] = []
        for prompt in job["prompts"]:
            found["alone"] += ask([prompt])
            llm.reset_prefix_cache()
        ask(job["prompts"])
        found["again"] = ask(job["prompts"])
    return found


def served(folder, prompts, mode, more=True, plugin=True):
    """What `serve` returns, or the end of its messages."""
    with tempfile.TemporaryDirectory() as place:
        job, out = Path(place) / "job.json", Path(place) / "out.json"
        job.write_text(json.dumps({"folder": str(folder), "prompts": prompts, "mode": mode, "more": more}))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(place) / "modules")}
        if not plugin:
            environment["VLLM_PLUGINS"] = "none"
        done = subprocess.run([sys.executable, __file__, "--serve", job, out], capture_output=True, text=True, env=environment)
        return json.loads(out.read_text()) if out.exists() else done.stdout + done.stderr


# ---------------------------------------------------------------- comparison


def texts():
    """Prompts of many lengths; two begin with the same words, more than a block of the cache."""
    guide = (ROOT / "docs/guides/verifying-a-checkpoint.md").read_text()
    return [guide[:n] for n in (300, 340)] + [guide[at : at + n] for at, n in ((40, 3), (90, 17), (200, 64), (400, 130), (700, 9), (900, 200))]


def ours(binary, folder, prompts):
    """The ids of the prompts, and the greedy continuation of each, in float32."""
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    answers = json.loads(run(binary, "generate", folder, *words, "--max-tokens", NEW_TOKENS, "--dtype", "f32", "--json", "--quiet"))
    return [answer["ids"] for answer in answers]


def largest_difference(binary, folder, prompts, answers, work):
    """Between the log-probabilities of vLLM's best tokens and ours, after the same tokens."""
    import torch
    from safetensors.torch import load_file

    worst = 0.0
    for prompt, answer in zip(prompts, answers):
        tokens, dump = work / "tokens.json", work / "logits.safetensors"
        tokens.write_text(json.dumps(prompt + answer["ids"][:-1]))
        run(binary, "logits", folder, "--tokens", tokens, "--dump", dump, "--quiet")
        expected = load_file(dump)["logits"][len(prompt) - 1 :].log_softmax(-1)
        for row, best in zip(expected, answer["best"]):
            values = torch.tensor(list(best.values()))
            worst = max(worst, float((row[[int(token) for token in best]] - values).abs().max()))
    return worst


def apart(some, others):
    """The largest difference of log-probabilities between two answers of vLLM to the same prompts; None for other tokens."""
    worst = 0.0
    for a, b in zip(some, others):
        if a["ids"] != b["ids"]:
            return None
        for one, other in zip(a["best"], b["best"]):
            worst = max([worst, *(abs(one[token] - other[token]) for token in one.keys() & other.keys())])
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--seed", type=lambda path: Path(path).resolve(), help="a real model, for example SmolLM2")
    parser.add_argument("--only", default="", help="mixtures whose name matches this")
    parser.add_argument("--mode", choices=["eager", "compiled"], help="only this one")
    parser.add_argument("--work", type=lambda path: Path(path).resolve(), help="folder for models, which stay there")
    arguments = parser.parse_args()
    work, faults, compared = arguments.work or Path(tempfile.mkdtemp(prefix="vllm-")), [], 0
    work.mkdir(exist_ok=True)
    maker = Maker(arguments.binary, work)

    def prompts_of(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        return [tokenizer(text)["input_ids"] for text in texts()]

    def check(name, folder, mode, plugin):
        nonlocal compared
        compared += 1
        how = f"{name}, {mode}{'' if plugin else ', no plugin'}"
        prompts = prompts_of(TOKENIZER if arguments.seed is None or not name.startswith("real") else arguments.seed)
        found = served(folder, prompts, mode, plugin=plugin)
        if isinstance(found, str):
            faults.append(f"{how}: {found[-3000:]}")
            print(f"{how}: FAULT", flush=True)
            return
        expected = ours(arguments.binary, folder, texts())
        equal = sum(a["ids"] == b for a, b in zip(found["batch"], expected))
        difference = largest_difference(arguments.binary, folder, prompts, found["batch"], work)
        alone, again = apart(found["batch"], found["alone"]), apart(found["batch"], found["again"])
        cached = sum(answer["cached"] for answer in found["again"])
        tokens = sum(len(answer["ids"]) for answer in found["batch"])
        bad = equal < len(prompts) or difference > TOLERANCE or cached == 0
        bad |= any(number is None or number > TOLERANCE for number in (alone, again))
        print(
            f"{how}: {equal} of {len(prompts)} texts equal ({tokens} tokens), log-probabilities within {difference:.1e}; alone "
            f"{alone if alone is None else f'{alone:.1e}'}, {cached} tokens cached {again if again is None else f'{again:.1e}'}"
            f"{' FAULT' if bad else ''}",
            flush=True,
        )  # fmt: skip
        if bad:
            faults.append(how)

    def check_swapped(name, folder):
        prompts = prompts_of(TOKENIZER)
        found = served(swapped(folder), prompts, "eager", more=False)
        if isinstance(found, str):
            faults.append(f"{name}, swapped: {found[-3000:]}")
            return
        difference = largest_difference(arguments.binary, folder, prompts, found["batch"], work)
        bad = difference < 100 * TOLERANCE
        print(f"{name}, two routers swapped: log-probabilities differ by {difference:.1e}{' FAULT' if bad else ''}", flush=True)
        if bad:
            faults.append(f"{name}, swapped")

    modes = [arguments.mode] if arguments.mode else ["eager", "compiled"]
    for name in MIXTURES:
        if not re.search(arguments.only, name):
            continue
        folder = maker.mixture(name)
        for mode in modes:
            if name.startswith("btx"):
                check(name, folder, mode, False)
            check(name, folder, mode, True)
        if name in ("btx", "bam", "bam shared"):
            check_swapped(name, folder)
        if name == "bam":
            refusal = served(folder, prompts_of(TOKENIZER), "eager", plugin=False)
            if not isinstance(refusal, str) or "pip install bam-vllm" not in refusal:
                faults.append(f"{name}, no plugin: not refused: {refusal}")
    for name in REAL if arguments.seed else ():
        if re.search(arguments.only, name):
            folder = maker.real(arguments.seed, name)
            for mode in modes:
                check(name, folder, mode, name != "real btx")
    if arguments.work is None:
        shutil.rmtree(work)
    for fault in faults:
        print(f"\nFAULT {fault}")
    print(f"\n{compared} comparisons, {len(faults)} faults")
    return int(bool(faults) or not compared)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        answer = serve(json.loads(Path(sys.argv[2]).read_text()))
        Path(sys.argv[3]).write_text(json.dumps(answer))
    else:
        sys.exit(main())
