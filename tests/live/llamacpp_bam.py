#!/usr/bin/env python3
"""BAMs with attention experts in llama.cpp: the same greedy tokens and probabilities as this program has.

    python tests/live/llamacpp_bam.py --binary target/release/bam-convert [--steps 200] [--tokens 64] [--seed DIR] [-- --engine torch]

needs xllamacpp (llama.cpp, built), gguf, transformers, safetensors and numpy. The binary trains a small seed on the texts of the
quickstart, three specialists, and mixtures of them. Keys and values are per expert or shared, and gates are a softmax of two
experts or sigmoids of four. Words after `--` go to `train`. --seed adds untrained mixtures of a real model and an altered copy.

Each mixture is written in float32 as a GGUF file, whose tensors the package gguf reads. They must be the tensors of the folder as
`expected` puts them together. llama.cpp continues 8 prompts greedily. The binary computes the logits of
prompts with these tokens in float32. Each token must be the one with the largest logit, unless the two largest are less than
--gap apart. Log-probabilities of the whole vocabulary may differ by at most --limit. Norms of queries and keys are tried
with a Qwen 3 seed whose specialists keep them. The same comparison must fail for each mixture with two gates exchanged.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import transformers
import xllamacpp
from safetensors.numpy import load_file, save_file

from llamacpp import ask

QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "quickstart"
DOMAINS = ("general", "code", "law", "math")
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 2048,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "hidden_act": "silu", "initializer_range": 0.02,
    "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0, "rope_theta": 10000.0, "dtype": "float32", "torch_dtype": "float32",
}  # fmt: skip
QWEN3 = {**CONFIG, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
# Log-probabilities are compared at each so many positions.
EACH = 4
# Seed, experts, options of `upcycle`.
MIXTURES = {
    "softmax, two experts": ("llama", 2, []),
    "softmax, two experts, shared KV": ("llama", 2, ["--kv", "shared"]),
    "sigmoid, four experts": ("llama", 4, ["--attention-gate", "sigmoid"]),
    "sigmoid, four experts, shared KV": ("llama", 4, ["--attention-gate", "sigmoid", "--kv", "shared"]),
    "sigmoid, two experts, Qwen 3": ("qwen3", 2, ["--attention-gate", "sigmoid"]),
    "softmax, two experts, Qwen 3, shared KV": ("qwen3", 2, ["--kv", "shared"]),
}
# Mixtures of --seed.
REAL = {"real, KV per expert": [], "real, shared KV": ["--kv", "shared"]}


class Work:
    """The folders of a run, made as they are needed."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = arguments.work or Path(tempfile.mkdtemp(prefix="llamacpp-bam-"))
        self.folder.mkdir(exist_ok=True)

    def run(self, *words):
        command = [str(word) for word in (self.arguments.binary, *words)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{done.stderr}")

    def train(self, checkpoint, out, weights, steps, *further):
        if out.exists():
            return out
        data = [word for domain, weight in weights.items() for word in ("--data", f"{domain}={self.tokens(domain)}:{weight}")]
        self.run(
            "train", checkpoint, *data, "--steps", steps, "--batch", 4, "--seq", 64, "--learning-rate", 2e-3, "--out", out,
            "--validate-every", 0, "--save-every", 0, "--quiet", *further, *self.arguments.further,
        )  # fmt: skip
        return out

    def tokens(self, domain):
        out = self.folder / "tokens" / domain
        if not out.exists():
            texts = QUICKSTART / "texts" / f"{domain}.jsonl"
            self.run("tokenize", "--tokenizer", QUICKSTART / "seed-config", texts, "--out", out, "--quiet")
        return out

    def seed(self, family):
        config = self.folder / f"{family}-config"
        if not config.exists():
            shutil.copytree(QUICKSTART / "seed-config", config)
            (config / "config.json").write_text(json.dumps(QWEN3 if family == "qwen3" else CONFIG))
            self.run("init", config, "--out", self.folder / f"{family}-random", "--quiet")
        steps = self.arguments.steps
        return self.train(self.folder / f"{family}-random", self.folder / f"{family}-seed", {"general": 1}, steps)

    def mixture(self, family, experts, options):
        frozen = ["--freeze", "q_norm,k_norm"] if family == "qwen3" else []
        seed, steps = self.seed(family), self.arguments.steps // 2
        named = []
        for domain in DOMAINS[1:experts]:
            expert = self.train(seed, self.folder / f"{family}-{domain}", {domain: 1}, steps, *frozen)
            named += ["--expert", f"{domain}={expert}"]
        out = self.folder / "-".join([family, str(experts), *options]).replace("--", "")
        if not out.exists():
            fresh = ("--out", f"{out}-fresh", "--quiet")
            self.run("upcycle", "--method", "bam", "--seed", seed, *named, *options, *fresh)
        # Routers learn fast, so that gates differ from token to token.
        weights = {domain: 1 for domain in DOMAINS}
        return self.train(f"{out}-fresh", out, weights, steps, "--router-learning-rate", 2e-2, *frozen)

    def real(self, seed, options):
        """A mixture of a model and an altered copy, untrained."""
        copy = self.folder / "real-copy"
        if not copy.exists():
            noise = self.folder / "real-noise"
            self.run("init", seed, "--out", noise, "--rng-seed", 1, "--force")
            self.run("merge", "--model", f"{seed}:0.95", "--model", f"{noise}:0.05", "--out", copy)
        out = self.folder / "-".join(["real", *options]).replace("--", "")
        router = ("--router", "normal:0.3", "--out", out, "--force")
        self.run("upcycle", "--method", "bam", "--seed", seed, "--expert", f"copy={copy}", *options, *router)
        return out

    def logits(self, folder, tokens):
        """Logits `[s, v]` of token ids, as this program computes them in float32."""
        ids, dump = self.folder / "ids.json", self.folder / "logits.safetensors"
        ids.write_text(json.dumps(tokens))
        dump.unlink(missing_ok=True)
        self.run("logits", folder, "--tokens", ids, "--dump", dump)
        return load_file(dump)["logits"].astype(np.float64)


def server(path):
    """llama.cpp in float32: caches of keys and values, too."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.warmup, parameters.cpuparams.n_threads = 512, False, 2
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(parameters)


def continued(llama, prompt, count):
    """Greedy tokens after a prompt."""
    return ask(llama, "completion", prompt=prompt, n_predict=count, temperature=0.0, return_tokens=True)["tokens"]


def probabilities(llama, tokens, vocabulary):
    """Log-probabilities `[v]` of the token after these; none where the likeliest one is a part of a character.

    The server holds that token back, and its probabilities with it.
    """
    answer = ask(llama, "completion", prompt=tokens, n_predict=1, temperature=0.0, n_probs=vocabulary)
    steps = answer.get("completion_probabilities") or [{"top_logprobs": []}]
    found = np.full(vocabulary, np.nan)
    for entry in steps[0]["top_logprobs"]:
        found[entry["id"]] = entry["logprob"]
    return found


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def exchanged(work, folder):
    """The mixture with the gates of its first two attention experts exchanged."""
    out = work.folder / f"{folder.name}-exchanged"
    shutil.copytree(folder, out, dirs_exist_ok=True)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if name.endswith("self_attn.router.weight"):
                tensors[name] = np.ascontiguousarray(tensor[[1, 0, *range(2, len(tensor))]])
        save_file(tensors, out / shard.name, {"format": "pt"})
    return out


def expected(folder):
    """The tensors of the GGUF file of a mixture without layers of zeros and shared experts: by name, arrays in float32."""
    config = json.loads((folder / "config.json").read_text())
    experts, heads, kv_heads = (config[key] for key in ("num_attention_experts", "num_attention_heads", "num_key_value_heads"))
    shared, width = config["attention_kv"] == "shared", config["head_dim"]
    stored = {}
    for shard in folder.glob("*.safetensors"):
        stored |= load_file(shard)
    found = {"token_embd": stored["model.embed_tokens.weight"], "output_norm": stored["model.norm.weight"]}
    found["output"] = stored.get("lm_head.weight", found["token_embd"])
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."

        def of_experts(part):
            return [stored[f"{attention}attention_experts.{e}.{part}.weight"] for e in range(experts)]

        def by_head(arrays):
            """`[experts, heads, width, ...]`; with shared keys, the heads of all experts that meet one key head come together."""
            each = np.stack([array.reshape(heads, width, -1) for array in arrays])
            if shared:
                each = each.reshape(experts, kv_heads, heads // kv_heads, width, -1).swapaxes(0, 1)
            return each.reshape(experts * heads * width, -1)

        router = stored[f"{attention}router.weight"]
        gates = router if config.get("attention_gate") == "sigmoid" else np.stack([router[0] - router[1], router[1] - router[0]])
        names = {
            "attn_norm": stored[f"model.layers.{layer}.input_layernorm.weight"],
            "attn_q": by_head(of_experts("q_proj")),
            "attn_gate": by_head([np.broadcast_to(row, (heads * width, row.size)) for row in gates])[::width],
            "attn_output": by_head([o.T for o in of_experts("o_proj")]).T * np.float64(config.get("attention_gate_scale", 1.0)),
            "ffn_norm": stored[f"model.layers.{layer}.post_attention_layernorm.weight"],
            "ffn_gate_inp": stored[f"{mlp}router.weight"],
        }
        for part in ("k", "v"):
            alone = f"{attention}{part}_proj.weight"
            names[f"attn_{part}"] = stored[alone] if shared else np.concatenate(of_experts(f"{part}_proj"))
        for norm in ("q_norm", "k_norm"):
            one = [key for key in stored if key.startswith(attention) and key.endswith(f"{norm}.weight")]
            names |= {f"attn_{norm}": stored[sorted(one)[0]]} if one else {}
        for part in ("gate", "up", "down"):
            of = [stored[f"{mlp}experts.{e}.{part}_proj.weight"] for e in range(config["num_experts"])]
            names[f"ffn_{part}_exps"] = np.stack(of)
            names[f"ffn_{part}_shexp"] = np.zeros((of[0].shape[0] if part == "down" else 32, 32 if part == "down" else of[0].shape[1]))
        found |= {f"blk.{layer}.{name}": array for name, array in names.items()}
    return {f"{name}.weight": np.float32(array) for name, array in found.items()}


def other_tensors(file, folder):
    """Names of tensors that the package gguf reads otherwise than `expected`."""
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    wanted = expected(folder)
    values = {name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for name, tensor in found.items()}
    same = [name for name in wanted.keys() & values.keys() if np.array_equal(wanted[name], values[name].reshape(wanted[name].shape))]
    return sorted((wanted.keys() | values.keys()) - set(same))


def compare(work, folder, told, prompts):
    """Tokens that are ours, all tokens, and the largest and the median difference of log-probabilities.

    llama.cpp runs the file made of `folder`, this program runs the folder `told`.
    """
    file = work.folder / f"{folder.name}.gguf"
    work.run("convert", folder, file, "--dtype", "f32", "--force")
    if others := other_tensors(file, folder):
        sys.exit(f"{file}: the package gguf reads other tensors: {', '.join(others)}")
    llama, same, count, differences = server(file), 0, 0, []
    for prompt in prompts:
        chosen = continued(llama, prompt, work.arguments.tokens)
        expected = log_softmax(work.logits(told, prompt + chosen)[len(prompt) - 1 : -1])
        gaps = expected.max(-1) - expected[np.arange(len(chosen)), chosen]
        same, count = same + int((gaps <= work.arguments.gap).sum()), count + len(chosen)
        for at in range(0, len(chosen), EACH):
            found = probabilities(llama, prompt + chosen[:at], expected.shape[1])
            if np.isfinite(found).all():
                differences.append(np.abs(found - expected[at]))
    del llama
    if 2 * len(differences) * EACH < count:
        sys.exit(f"{file}: llama.cpp has given probabilities of {len(differences)} positions only")
    differences = np.concatenate(differences)
    return same, count, float(differences.max()), float(np.median(differences))


def prompts_of(tokenizer):
    """Eight beginnings of texts."""
    prompts = []
    for domain in DOMAINS:
        lines = (QUICKSTART / "texts" / f"{domain}.jsonl").read_text().splitlines()
        prompts += [tokenizer(json.loads(line)["text"])["input_ids"][:24] for line in lines[:2]]
    return prompts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--work", type=Path, help="folder for models, which stay there")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--gap", type=float, default=1e-3)
    parser.add_argument("--limit", type=float, default=0.05)
    parser.add_argument("--seed", type=lambda path: Path(path).resolve(), help="folder of a real model")
    parser.add_argument("--only", nargs="*", default=[*MIXTURES, *REAL])
    parser.add_argument("further", nargs="*")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    work, faults = Work(arguments), 0
    for name in arguments.only:
        if name in REAL and arguments.seed is None:
            continue
        texts = arguments.seed if name in REAL else QUICKSTART / "seed-config"
        prompts = prompts_of(transformers.AutoTokenizer.from_pretrained(texts))
        if name in REAL:
            folder = work.real(arguments.seed, REAL[name])
        else:
            folder = work.mixture(*MIXTURES[name])
        same, count, most, median = compare(work, folder, folder, prompts)
        good = same == count == len(prompts) * arguments.tokens and most <= arguments.limit
        wrong, _, wrong_most, _ = compare(work, exchanged(work, folder), folder, prompts)
        good &= wrong < count and wrong_most > arguments.limit
        faults += not good
        print(f"{name}: {same} of {count} greedy tokens, log-probabilities at most {most:.1e} apart, median {median:.1e}; "
              f"gates exchanged: {wrong} tokens, {wrong_most:.1e} apart{'' if good else ' FAULT'}", flush=True)  # fmt: skip
    if arguments.work is None:
        shutil.rmtree(work.folder)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
