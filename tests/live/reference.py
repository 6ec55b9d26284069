#!/usr/bin/env python3
"""A model's logits in float64, computed from its folder alone: the oracle for everything faster.

    python reference.py DIR --tokens FILE.json --out OUT.safetensors      `logits` [seq, vocab] as f64

Dense models (llama, mistral, qwen2, qwen3, cohere) and BAM mixtures. Follows `docs` and the paper (arXiv 2408.08274,
sections 3.1 to 3.4) word by word: one expert after another, one attention each, then the weighted sum. It shares no code
with `modeling_bam.py`, uses no identity between layouts and no library but numpy for the arithmetic.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file


# ---------------------------------------------------------------- the folder


class Weights:
    """Tensors of a folder by name, read when asked for and widened to float64."""

    def __init__(self, folder):
        self.files = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            file = safe_open(path, framework="pt")
            self.files.update(dict.fromkeys(file.keys(), file))

    def __contains__(self, name):
        return name in self.files

    def __getitem__(self, name):
        return self.files[name].get_tensor(name).to(torch.float64).numpy()

    def linear(self, name, x):
        """x Wᵀ, plus the weight's bias, if any."""
        y = x @ self[name + ".weight"].T
        return y + self[name + ".bias"] if name + ".bias" in self else y


DENSE = {
    "llama": dict(qk_norm="none"),
    "mistral": dict(qk_norm="none"),
    "qwen2": dict(qk_norm="none"),
    "qwen3": dict(qk_norm="head_dim"),
    "cohere": dict(block="parallel", norm_type="layer", rope_interleaved=True, qk_norm="per_head"),
}


def settings(folder):
    """config.json with what a dense family leaves unsaid."""
    config = json.loads((Path(folder) / "config.json").read_text())
    usual = dict(block="sequential", norm_type="rms", norm_position="pre", mlp_type="gated", rope_interleaved=False)
    if config["model_type"] != "bam":
        usual.update(DENSE[config["model_type"]], moe_layers=[], attention_moe_layers=[], attention_kv="merged")
        if config["model_type"] == "cohere" and not config.get("use_qk_norm"):
            usual["qk_norm"] = "none"
    config = {**usual, **config}
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    config["eps"] = config.get("rms_norm_eps") or config.get("layer_norm_eps") or 1e-6
    rope = dict(config.get("rope_scaling") or {}, **(config.get("rope_parameters") or {}))
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    config["rope"] = rope
    return config


def window(config, layer):
    """How many positions a token of this layer sees, itself counted; None for all before it."""
    size = config.get("sliding_window")
    if size is None or config.get("use_sliding_window") is False:
        return None
    if config.get("layer_types"):
        return size if config["layer_types"][layer] == "sliding_attention" else None
    return size if layer >= (config.get("max_window_layers") or 0) else None


# ---------------------------------------------------------------- pieces


def norm(config, x, weight, kind=None):
    if (kind or config["norm_type"]) == "layer":
        x = x - x.mean(-1, keepdims=True)
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + config["eps"])


def capped(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def activation(config, x):
    kind = config.get("hidden_act", "silu")
    if kind in ("silu", "swish"):
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if kind in ("gelu_pytorch_tanh", "gelu_new"):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "relu":
        return np.maximum(x, 0)
    raise ValueError(f"hidden_act {kind}")


def frequencies(config):
    """Angle per position of each rotary pair, and the factor on cosine and sine."""
    rope = config["rope"]
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    dims = int(config["head_dim"] * partial)
    base = np.array([rope["rope_theta"] ** (-2 * i / dims) for i in range(dims // 2)])
    kind, factor = rope["rope_type"], rope.get("factor", 1.0)
    original = rope.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    if kind in ("default", "dynamic"):  # dynamic begins beyond `max_position_embeddings`, where no check goes
        return base, 1.0
    if kind == "linear":
        return base / factor, 1.0
    if kind == "llama3":  # slow pairs are slowed by `factor`, fast ones are kept, those between are mixed
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        turns = original * base / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        return kept * base + (1 - kept) * base / factor, 1.0
    if kind == "yarn":  # arXiv 2309.00071, section 3.2 and 3.4

        def pair_of(rotations):
            theta = rope["rope_theta"]
            return dims * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair_of(rope.get("beta_fast") or 32), pair_of(rope.get("beta_slow") or 1)
        if rope.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        ramp = np.clip((np.arange(dims // 2) - low) / ((high - low) or 0.001), 0, 1)
        scale = rope.get("attention_factor")
        if scale is None:
            one = lambda m: 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0
            m, n = rope.get("mscale"), rope.get("mscale_all_dim")
            scale = one(m) / one(n) if m and n else one(1.0)
        return (1 - ramp) * base + ramp * base / factor, scale
    raise ValueError(f"rope_type {kind}")


def rotate(config, head, first_position=0):
    """Rotary embedding of one head `[seq, head_dim]`."""
    angle, scale = frequencies(config)
    position = np.arange(first_position, first_position + len(head))[:, None]
    cos, sin = np.cos(position * angle) * scale, np.sin(position * angle) * scale
    n, out = len(angle), head.copy()
    one, two = (
        (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if config["rope_interleaved"] else (slice(0, n), slice(n, 2 * n))
    )
    out[:, one] = head[:, one] * cos - head[:, two] * sin
    out[:, two] = head[:, two] * cos + head[:, one] * sin
    return out


def head_norm(config, heads, weights, name):
    """Norm of queries or keys `[seq, heads, head_dim]`."""
    if config["qk_norm"] == "none":
        return heads
    kind = "layer" if config["qk_norm"] == "per_head" else "rms"
    return norm(config, heads, weights[name + ".weight"], kind)


def attention(config, weights, h, layer, queries, keys):
    """One multi-head attention (paper eq. 1): `queries` and `keys` are where its projections are."""
    seq, width = len(h), config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or config["num_attention_heads"]
    q = weights.linear(queries + "q_proj", h).reshape(seq, heads, width)
    k = weights.linear(keys + "k_proj", h).reshape(seq, kv_heads, width)
    v = weights.linear(keys + "v_proj", h).reshape(seq, kv_heads, width)
    q, k = head_norm(config, q, weights, queries + "q_norm"), head_norm(config, k, weights, keys + "k_norm")
    position, size = np.arange(seq), window(config, layer)
    hidden = position[None, :] > position[:, None]
    if size is not None:
        hidden |= position[None, :] <= position[:, None] - size
    out = []
    for head in range(heads):
        kv = head // (heads // kv_heads)
        scores = rotate(config, q[:, head]) @ rotate(config, k[:, kv]).T
        scores = scores * (config.get("attention_multiplier") or 1 / math.sqrt(width))
        scores = capped(scores, config.get("attn_logit_softcapping"))
        out.append(softmax(np.where(hidden, -np.inf, scores)) @ v[:, kv])
    return weights.linear(queries + "o_proj", np.concatenate(out, axis=1))


def feed_forward(config, weights, h, at):
    up = weights.linear(at + "up_proj", h)
    if config["mlp_type"] == "gated":
        up = activation(config, weights.linear(at + "gate_proj", h)) * up
    else:
        up = activation(config, up)
    return weights.linear(at + "down_proj", up)


def gates(config, weights, h, router, top_k, renormalise, forced):
    """Softmax over all experts, zero outside the top k `[seq, experts]`, or sigmoids; and the router's logits."""
    choice = 0
    if config.get("router_bias") == "choice":  # a bias of the choice, not of the logits
        logits = h @ weights[router + ".weight"].T
        choice = weights[router + ".bias"] if router + ".bias" in weights else 0
    else:
        logits = weights.linear(router, h)
    if forced is not None:
        logits = np.broadcast_to(forced, logits.shape)
    if router.endswith("self_attn.router") and config.get("attention_gate") == "sigmoid":
        return config.get("attention_gate_scale", 1.0) / (1 + np.exp(-logits)), logits
    gate = softmax(logits)
    for row in gate:
        row[np.argsort(-(row + choice), kind="stable")[top_k:]] = 0
    return (gate / gate.sum(-1, keepdims=True) if renormalise else gate), logits


def adapted(weights, at, y):
    return weights.linear(at + "adapter", y) if at + "adapter.weight" in weights else y


# ---------------------------------------------------------------- the model


def mixed(listed, layer):
    return listed == "all" or layer in listed


def attention_part(config, weights, h, layer, forced):
    at = f"model.layers.{layer}.self_attn."
    if config["attention_kv"] == "merged" or not mixed(config["attention_moe_layers"], layer):
        return attention(config, weights, h, layer, at, at)
    gate, _ = gates(
        config,
        weights,
        h,
        at + "router",
        config["num_attention_experts_per_tok"],
        config.get("norm_topk_prob_attention"),
        forced,
    )
    y = 0
    for e in range(config["num_attention_experts"]):
        expert = f"{at}attention_experts.{e}."
        one = attention(config, weights, h, layer, expert, at if config["attention_kv"] == "shared" else expert)
        y = y + gate[:, e, None] * adapted(weights, expert, one)
    return y


def ffn_part(config, weights, h, layer, forced, router_logits):
    at = f"model.layers.{layer}.mlp."
    if not mixed(config["moe_layers"], layer):
        return feed_forward(config, weights, h, at)
    gate, logits = gates(
        config, weights, h, at + "router", config["num_experts_per_tok"], config.get("norm_topk_prob"), forced
    )
    router_logits.append((logits, gate > 0))
    y = 0
    for e in range(config["num_experts"]):
        expert = f"{at}experts.{e}."
        y = y + gate[:, e, None] * adapted(weights, expert, feed_forward(config, weights, h, expert))
    if at + "shared_expert.up_proj.weight" in weights:
        shared = feed_forward(config, weights, h, at + "shared_expert.")
        if at + "shared_expert_gate.weight" in weights:
            shared = shared / (1 + np.exp(-weights.linear(at + "shared_expert_gate", h)))
        y = y + shared
    return y


def forward(folder, tokens, forced_ffn=None, forced_attention=None):
    """Logits `[seq, vocab]`, and of each feed-forward router its logits and what it chose `[seq, experts]`; float64.

    `forced_*` replaces what routers say with one row of logits for every token and layer.
    """
    config, weights = settings(folder), Weights(folder)
    x = weights["model.embed_tokens.weight"][np.array(tokens)] * (config.get("embedding_multiplier") or 1)
    residual = config.get("residual_multiplier") or 1
    router_logits = []
    for layer in range(config["num_hidden_layers"]):
        named = lambda name, y: norm(config, y, weights[f"model.layers.{layer}.{name}.weight"])
        attend = lambda h: attention_part(config, weights, h, layer, forced_attention)
        mlp = lambda h: ffn_part(config, weights, h, layer, forced_ffn, router_logits)
        added = lambda name, y: residual * (named(name, y) if name else y)
        position, parallel = config["norm_position"], config["block"] == "parallel"
        if position == "pre" and parallel:
            h = named("input_layernorm", x)
            x = x + added(None, attend(h)) + added(None, mlp(h))
        elif position == "pre":
            x = x + added(None, attend(named("input_layernorm", x)))
            x = x + added(None, mlp(named("post_attention_layernorm", x)))
        elif position == "post" and parallel:
            x = x + added("post_attention_layernorm", attend(x)) + added("post_feedforward_layernorm", mlp(x))
        elif position == "post":
            x = x + added("post_attention_layernorm", attend(x))
            x = x + added("post_feedforward_layernorm", mlp(x))
        elif parallel:
            h = named("input_layernorm", x)
            x = x + added("post_attention_layernorm", attend(h)) + added("post_feedforward_layernorm", mlp(h))
        else:
            x = x + added("post_attention_layernorm", attend(named("input_layernorm", x)))
            x = x + added("post_feedforward_layernorm", mlp(named("pre_feedforward_layernorm", x)))
    x = norm(config, x, weights["model.norm.weight"])
    head = "lm_head" if "lm_head.weight" in weights else "model.embed_tokens"
    logits = weights.linear(head, x) * (config.get("logit_scale") or 1) / (config.get("logits_divisor") or 1)
    return capped(logits, config.get("final_logit_softcapping")), router_logits


def losses(folder, tokens):
    """Next-token loss, load-balancing and z-loss summed over layers (paper eq. 2), of one sequence without padding."""
    config = settings(folder)
    logits, routers = forward(folder, tokens)
    nll = -np.mean([np.log(softmax(row))[token] for row, token in zip(logits[:-1], tokens[1:])])
    balance = z = 0.0
    for scores, top in routers:
        gate = softmax(scores)
        experts = gate.shape[1]
        for e in range(experts):
            balance += experts * np.mean(top[:, e]) * np.mean(gate[:, e])
        z += np.mean([np.log(np.sum(np.exp(row))) ** 2 for row in scores])
    return nll, balance, z


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=Path, required=True, help="JSON array of token ids")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logits, _ = forward(arguments.folder, json.loads(arguments.tokens.read_text()))
    save_file({"logits": torch.from_numpy(logits)}, arguments.out)


if __name__ == "__main__":
    main()
