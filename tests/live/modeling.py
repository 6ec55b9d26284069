#!/usr/bin/env python3
"""The modeling files of an export, under the transformers that is installed (4.57.1 and 5.x are supported).

    python tests/live/modeling.py --binary target/release/bam-convert --fixtures fixtures [--code DIR] [--only TEXT]

Makes tiny mixtures of every family with the binary, and others by hand for features that no tiny family has (`--code`: put the
two .py files of DIR into them). Runs every check below on each. Logits are compared with `reference.py`. Prints one row a
mixture with the largest differences found; exits 1 if anything failed.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

WORK = Path(tempfile.mkdtemp(prefix="bam-modeling-"))
os.environ["HF_MODULES_CACHE"] = str(WORK / "modules")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import reference

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "cohere")
CODE = ("configuration_bam.py", "modeling_bam.py")
TOLERANCE = 1e-4
VARIANTS = {
    "expert": ["--method", "bam"],
    "paper": ["--method", "bam", "--preset", "paper"],
    "shared": ["--method", "bam", "--kv", "shared"],
    "sigmoid": ["--method", "bam", "--kv", "shared", "--attention-gate", "sigmoid"],
    "btx": ["--method", "btx"],
    "btx paper": ["--method", "btx", "--preset", "paper"],
    "top-1": ["--method", "bam", "--preset", "paper", "--attention-top-k", "1"],
    "top-2 norm": [
        "--method",
        "bam",
        "--kv",
        "shared",
        "--attention-top-k",
        "2",
        "--top-k",
        "2",
        "--norm-topk-prob",
        "true",
    ],
}
# Feed-forward experts of one seed.
ONE_SEED = {
    "sparse layers": "--method sparse --experts 3 --layers every:2 --top-k 2 --norm-topk-prob true --router normal:0.5",
    "drop": "--method drop --experts 3 --top-k 2 --router normal:0.5 --shared-expert seed:gated",
    "granular": "--method granular --experts 2 --granularity 4 --router normal:0.5",
    "shuffle": "--method shuffle --experts 5 --expert-width 10 --top-k 2 --router normal:0.5",
    "split": "--method split --experts 4 --top-k 3 --router normal:0.5 --shared-expert seed",
}
# What no tiny family has, on one small shape.
BY_HAND = {
    "yarn": dict(rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)),
    "linear": dict(rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
    "dynamic": dict(rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0, factor=2.0)),
    "partial": dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)),
    "post": dict(norm_position="post", mlp_type="plain", hidden_act="gelu", mlp_bias=True),
    "post parallel": dict(norm_position="post", block="parallel"),
    "sandwich": dict(norm_position="sandwich", attention_kv="shared"),
    "sandwich parallel": dict(norm_position="sandwich", block="parallel", norm_type="layer"),
    "per head": dict(qk_norm="per_head", norm_type="layer", rope_interleaved=True, block="parallel", logit_scale=0.25),
    "per head shared": dict(qk_norm="per_head", attention_kv="shared", attention_bias=True, attention_output_bias=True),
    "multipliers": dict(
        embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2, logits_divisor=4.0, num_experts_per_tok=2,
    ),
    "soft caps": dict(attn_logit_softcapping=0.7, final_logit_softcapping=1.5, attention_kv="shared", attention_multiplier=0.5),
    "biases": dict(attention_bias=True, attention_output_bias=True, mlp_bias=True, router_bias=True),
    "window": dict(sliding_window=5),
    "window layers": dict(sliding_window=5, layer_types=["sliding_attention", "full_attention"], attention_kv="shared"),
    "window unused": dict(sliding_window=5, use_sliding_window=False),
    "shared expert": dict(shared_expert_intermediate_size=20, shared_expert_gate=True, num_experts_per_tok=2),
    "bias of the choice": dict(router_bias="choice", num_experts_per_tok=2, norm_topk_prob=True),
    "plain shared expert": dict(shared_expert_intermediate_size=24, mlp_type="plain", mlp_bias=True, attention_kv="merged"),
    "adapters": dict(expert_adapters=True, num_experts_per_tok=3, attention_output_bias=True),
    "more experts": dict(num_experts=5, num_attention_experts=2, num_attention_experts_per_tok=1, norm_topk_prob_attention=False),
    "sigmoid gates": dict(attention_gate="sigmoid", attention_gate_scale=0.6, router_bias=True, bam_version=2),
    "sigmoid gates, adapters": dict(attention_gate="sigmoid", attention_kv="shared", expert_adapters=True, bam_version=2),
    "top-2 norm attention": dict(num_attention_experts_per_tok=2, norm_topk_prob_attention=True),
}  # fmt: skip
# Dense models whose features the tiny families lack: `reference.py` against the family's own code.
DENSE = {
    "llama linear": ("llama", dict(rope_type="linear", factor=4.0), dict(attention_bias=True, mlp_bias=True)),
    "llama yarn": ("llama", dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32), dict(rms_norm_eps=1e-3)),
    "mistral window": ("mistral", dict(rope_type="default"), dict(sliding_window=5)),
    "qwen2 window": ("qwen2", dict(rope_type="default"), dict(sliding_window=5, use_sliding_window=True, max_window_layers=1)),
    "cohere qk norm": ("cohere", dict(rope_type="default"), dict(use_qk_norm=True)),
}  # fmt: skip
SHAPE = dict(
    vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, max_position_embeddings=128, rms_norm_eps=1e-5, num_experts=3, num_experts_per_tok=1, moe_intermediate_size=40,
    tie_word_embeddings=False, model_type="bam", architectures=["BamForCausalLM"], torch_dtype="float32", dtype="float32",
    bam_version=1, block="sequential", norm_type="rms", norm_position="pre", mlp_type="gated", rope_interleaved=False,
    qk_norm="none", moe_layers="all", attention_moe_layers="all", attention_kv="expert", num_attention_experts=3,
    num_attention_experts_per_tok=3, pad_token_id=0, bos_token_id=0, eos_token_id=2,
    auto_map={
        "AutoConfig": "configuration_bam.BamConfig", "AutoModel": "modeling_bam.BamModel",
        "AutoModelForCausalLM": "modeling_bam.BamForCausalLM",
    },
)  # fmt: skip


# ---------------------------------------------------------------- making mixtures


def upcycle(arguments, family, name, options, experts=("code", "law")):
    out = WORK / f"{family}-{name}".replace(" ", "-")
    source = arguments.fixtures / family
    named = [part for e in experts for part in ("--expert", f"{e}={source / e}")]
    command = [arguments.binary, "upcycle", *options, "--seed", source / "seed", *named, "--out", out, "--quiet"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    give_code(arguments, out)
    return out


def give_code(arguments, folder):
    if arguments.code:
        for name in CODE:
            shutil.copy(arguments.code / name, folder)


def lists_of_layers(arguments, family, expert):
    """The expert mixture with attention experts in layer 0 only and feed-forward experts in layer 1 only."""
    out = WORK / f"{family}-lists"
    shutil.copytree(expert, out)
    tensors = load_file(expert / "model.safetensors")
    dense = load_file(arguments.fixtures / family / "seed" / "model.safetensors")
    for part in ("model.layers.1.self_attn.", "model.layers.0.mlp."):
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(part)}
        tensors.update({name: tensor for name, tensor in dense.items() if name.startswith(part)})
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config.update(moe_layers=[1], attention_moe_layers=[0])
    (out / "config.json").write_text(json.dumps(config))
    return out


def by_hand(arguments, name, changes):
    out = WORK / f"hand-{name}".replace(" ", "-")
    upcycled = WORK / "llama-expert"
    if not upcycled.exists():
        upcycle(arguments, "llama", "expert", VARIANTS["expert"])
    out.mkdir()
    for file in CODE:
        shutil.copy(upcycled / file, out)
    (out / "config.json").write_text(json.dumps({**SHAPE, **changes}))
    config = AutoConfig.from_pretrained(out, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    draw(model, len(name))
    model.save_pretrained(out)
    (out / "config.json").write_text(json.dumps({**SHAPE, **changes}))  # as a tool writes it, not as transformers does
    return out


def draw(model, seed):
    """Weights wide enough that a wrong norm, bias or rotary style shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    routers = [(key, bias) for key, bias in model.named_buffers() if "router" in key]
    with torch.no_grad():
        for key, parameter in [*model.named_parameters(), *routers]:
            noise = torch.randn(parameter.shape, generator=generator)
            wide = (
                1 + 0.2 * noise
                if "norm" in key
                else 0.1 * noise
                if "bias" in key
                else noise / parameter.shape[-1] ** 0.5
            )
            parameter.copy_(0.5 * noise if "embed_tokens" in key else wide)


def dense(name, family, rope, changes):
    """How far `reference.py` is from the family's own model in transformers."""
    shape = {key: SHAPE[key] for key in list(SHAPE)[:9]} | {"pad_token_id": 0}
    rope = {**rope, "rope_theta": 10000.0}
    old = dict(rope_theta=10000.0, rope_scaling=None if rope["rope_type"] == "default" else rope)
    spelt = old if transformers.__version__.startswith("4.") else dict(rope_parameters=rope)
    config = transformers.AutoConfig.for_model(family, **{**shape, **spelt, **changes})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    draw(model, len(name))
    out = WORK / f"dense-{name}".replace(" ", "-")
    model.save_pretrained(out)
    expected, _ = reference.forward(out, TOKENS)
    return close("reference.py and the family's model", largest(logits_of(model, TOKENS), expected))


def dense_fixture(arguments, family):
    folder = arguments.fixtures / family / "seed"
    expected, _ = reference.forward(folder, TOKENS)
    return close("reference.py and the family's model", largest(logits_of(load_dense(folder), TOKENS), expected))


# ---------------------------------------------------------------- checks


class Complaints(logging.Handler):
    """Collects what transformers or Python warns about."""

    def __enter__(self):
        self.records = []
        self.logger = logging.getLogger("transformers")
        self.logger.addHandler(self)
        self.catcher = warnings.catch_warnings(record=True)
        self.caught = self.catcher.__enter__()
        warnings.simplefilter("always")
        return self

    def emit(self, record):
        if record.levelno >= logging.WARNING:
            self.records.append(record.getMessage())

    def __exit__(self, *error):
        self.catcher.__exit__(*error)
        self.logger.removeHandler(self)
        ours = [str(w.message) for w in self.caught if "bam" in str(w.filename) or issubclass(w.category, UserWarning)]
        if not any(error):
            assert not self.records and not ours, f"warned: {self.records + ours}"


def load(folder, **options):
    options = {"dtype": torch.float32, "trust_remote_code": True, **options}
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def load_dense(folder):
    """A family's own model. Its config.json is first respelt: 4.57 silently misreads the rotary keys of 5.x."""
    out = WORK / f"dense-{folder.parent.name}-{folder.name}"
    if not out.exists():
        shutil.copytree(folder, out)
        config = json.loads((folder / "config.json").read_text())
        rope = config.get("rope_parameters")
        if rope and transformers.__version__.startswith("4."):
            config["rope_theta"] = rope["rope_theta"]
            config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
            (out / "config.json").write_text(json.dumps(config))
    return load(out, trust_remote_code=False)


def logits_of(model, tokens, **inputs):
    with torch.no_grad():
        return model(torch.tensor([tokens]), **inputs).logits[0].double()


def largest(a, b):
    return float((a.double() - torch.as_tensor(b).double()).abs().max())


def close(what, difference, limit=TOLERANCE):
    assert difference <= limit, f"{what} differ by {difference:.3g}, limit {limit:g}"
    return f"{difference:.1e}"


TOKENS = [1, 72, 105, 300, 2, 17, 383, 44, 44, 260, 9, 131, 310, 3, 99, 201]


def check_load(folder):
    """Every tensor of the file is used, none is made up, weights arrive bit for bit, nothing is warned about."""
    with Complaints():
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
        )
        AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    faults = {key: value for key, value in info.items() if value}
    assert not faults, faults
    stored = load_file(folder / "model.safetensors")
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    names = set(state) - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
    assert set(stored) == names, set(stored) ^ names
    for name, tensor in stored.items():
        assert torch.equal(state[name], tensor.float()), name
    if model.config.tie_word_embeddings:
        assert model.lm_head.weight is model.model.embed_tokens.weight
    narrow = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto")
    assert all(narrow.state_dict()[name].dtype == tensor.dtype for name, tensor in stored.items()), "dtype"
    return f"{len(stored)}"


def check_logits(folder):
    expected, _ = reference.forward(folder, TOKENS)
    differences = [
        largest(logits_of(load(folder, attn_implementation=kind), TOKENS), expected) for kind in ("eager", "sdpa")
    ]
    return close("eager or sdpa and reference.py", max(differences))


def check_cache(folder):
    model = load(folder)
    full = logits_of(model, TOKENS)
    cache, parts = None, []
    for tokens in (TOKENS[:7], *[[token] for token in TOKENS[7:12]], TOKENS[12:]):
        with torch.no_grad():
            out = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits[0])
    assert type(cache) is transformers.DynamicCache
    return close("cached and uncached logits", largest(torch.cat(parts), full), 1e-5)


def check_generate(folder):
    for kind in ("eager", "sdpa"):
        with Complaints():
            model = load(folder, attn_implementation=kind)
            options = dict(max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
            prompt = torch.tensor([TOKENS[:6]])
            mask = torch.ones_like(prompt)
            with_cache = model.generate(prompt, attention_mask=mask, use_cache=True, **options)
            without = model.generate(prompt, attention_mask=mask, use_cache=False, **options)
        assert torch.equal(with_cache, without), (with_cache, without)
        assert torch.equal(model.generate(prompt, attention_mask=mask, num_beams=2, **options)[:, :6], prompt)
    return "equal"


def check_padding(folder):
    short, pad = TOKENS[:9], 7
    batch = torch.tensor([TOKENS, [0] * pad + short])
    mask = torch.tensor([[1] * len(TOKENS), [0] * pad + [1] * len(short)])
    worst = 0.0
    for kind in ("eager", "sdpa"):
        model = load(folder, attn_implementation=kind)
        with torch.no_grad():
            logits = model(batch, attention_mask=mask).logits
        assert logits.isfinite().all()
        worst = max(
            worst, largest(logits[1, pad:], logits_of(model, short)), largest(logits[0], logits_of(model, TOKENS))
        )
        options = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)
        together = model.generate(batch, attention_mask=mask, **options)[1, -5:]
        alone = model.generate(torch.tensor([short]), attention_mask=torch.ones(1, len(short)), **options)[0, -5:]
        assert torch.equal(together, alone), "generation of a padded prompt"
    return close("padded and unpadded logits", worst)


def check_save(folder):
    out = Path(tempfile.mkdtemp(dir=WORK))
    model = load(folder)
    with Complaints():
        model.save_pretrained(out)
    saved, stored = load_file(out / "model.safetensors"), load_file(folder / "model.safetensors")
    assert set(saved) == set(stored), set(saved) ^ set(stored)
    assert all(torch.equal(saved[name], tensor.float()) for name, tensor in stored.items())
    assert all((out / name).is_file() for name in CODE), "the .py files are not saved"
    before, after = (json.loads((at / "config.json").read_text()) for at in (folder, out))
    # Dtype and rotary keys are spelt by version, and a window becomes `layer_types` or, if unused, is dropped.
    free = ("torch_dtype", "dtype", "transformers_version", "rope_scaling", "auto_map")
    free += ("use_sliding_window", "max_window_layers") + ("sliding_window",) * (
        before.get("use_sliding_window") is False
    )
    changed = [key for key in before if key not in free and before[key] is not None and before[key] != after.get(key)]
    assert not changed, f"config.json lost {[(key, before[key], after.get(key)) for key in changed]}"
    assert set(after["auto_map"]) >= {"AutoConfig", "AutoModelForCausalLM"}, after["auto_map"]
    close("saved and loaded again", largest(logits_of(load(out), TOKENS), logits_of(model, TOKENS)), 1e-5)
    expected, _ = reference.forward(out, TOKENS)
    close("saved model and reference.py", largest(logits_of(model, TOKENS), expected))
    return "equal"


def training_batch(model):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.config.vocab_size, (6, 40), generator=generator)


def gradients(model, batch):
    model.train()
    model.zero_grad()
    out = model(batch, labels=batch, output_router_logits=True)
    out.loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}, out


def check_gradients(folder):
    """Every parameter gets one, and gradient checkpointing (both kinds) changes none."""
    model = load(folder)
    batch = training_batch(model)
    plain, out = gradients(model, batch)
    for logits in out.router_logits:
        chosen = logits.topk(model.config.num_experts_per_tok).indices
        assert set(chosen.flatten().tolist()) == set(range(model.config.num_experts)), "the batch misses an expert"
    dead = [name for name, gradient in plain.items() if gradient is None or not gradient.any()]
    assert not dead, f"no gradient: {dead}"
    worst = 0.0
    for reentrant in (False, True):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        again, _ = gradients(model, batch)
        worst = max(worst, max(largest(again[name], gradient) for name, gradient in plain.items()))
    return close("gradients with and without checkpointing", worst, 1e-6)


def check_no_tokens(folder):
    """An expert that no token chooses still gets a gradient, of zeros."""
    model = load(folder)
    if not any(model.config.has_experts(layer) for layer in range(model.config.num_hidden_layers)):
        return "-"
    if model.config.num_experts_per_tok == model.config.num_experts:
        return "soft"
    force(model, ffn=0)
    grads, _ = gradients(model, training_batch(model))
    idle = [name for name in grads if f".mlp.experts.{model.config.num_experts - 1}." in name]
    assert idle and all(grads[name] is not None and not grads[name].any() for name in idle)
    return "zeros"


def check_loss(folder):
    """Next-token loss plus both router losses; padding changes neither."""
    model = load(folder)
    config = model.config
    nll, balance, z = reference.losses(folder, TOKENS)
    batch = torch.tensor([TOKENS])
    with torch.no_grad():
        out = model(batch, labels=batch)
    aux = config.router_aux_loss_coef * balance + config.router_z_loss_coef * z
    worst = max(abs(float(out.loss) - nll - aux), abs(float(out.aux_loss) - aux))
    padded = torch.tensor([[0] * 5 + TOKENS])
    mask = torch.tensor([[0] * 5 + [1] * len(TOKENS)])
    with torch.no_grad():
        again = model(padded, attention_mask=mask, labels=padded.masked_fill(mask == 0, -100))
        items = torch.tensor(2 * len(TOKENS))
        half = model(batch, labels=batch, num_items_in_batch=items)
    worst = max(worst, abs(float(again.aux_loss) - aux), abs(float(half.aux_loss) - aux / 2))
    # The first token of the unpadded text is predicted from padding, whose labels count nothing, hence a looser look.
    return close("losses", worst)


def check_bf16(folder):
    """bf16 weights, and f32 weights under autocast, give finite logits and gradients; routers stay f32."""
    for model in (load(folder, dtype=torch.bfloat16), load(folder)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.dtype == torch.float32):
            grads, out = gradients(model, training_batch(model))
        assert all(logits.dtype == torch.float32 for logits in out.router_logits)
        assert out.loss.isfinite() and all(gradient.isfinite().all() for gradient in grads.values())
    return "finite"


def check_outputs(folder):
    model = load(folder)
    batch = torch.tensor([TOKENS])
    with torch.no_grad():
        out = model(batch, output_hidden_states=True, output_router_logits=True, logits_to_keep=1)
        as_tuple = model(batch, return_dict=False)
        embedded = model(inputs_embeds=model.get_input_embeddings()(batch)).logits
    mixtures = sum(model.config.has_experts(layer) for layer in range(model.config.num_hidden_layers))
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert [tuple(l.shape) for l in out.router_logits] == [(len(TOKENS), model.config.num_experts)] * mixtures
    assert out.logits.shape[:2] == (1, 1) and isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], embedded)
    model.set_attn_implementation("eager")
    close("eager set later", largest(logits_of(model, TOKENS), embedded[0]))
    return "ok"


def check_refusals(folder):
    """Configurations that the binary refuses, too."""
    config = json.loads((folder / "config.json").read_text())
    kind = type(AutoConfig.from_pretrained(folder, trust_remote_code=True))
    experts = config["num_attention_experts"]
    sigmoid = dict(
        attention_gate="sigmoid", num_attention_experts_per_tok=experts, norm_topk_prob_attention=False, attention_kv="shared"
    )
    kind(**config | sigmoid)
    kind(**config | dict(query_scale_beta=0))
    for change in (
        dict(query_scale_beta=0.1),
        dict(query_scale_beta=0.1, query_scale_context=0),
        sigmoid | dict(attention_kv="merged"),
        sigmoid | dict(attention_gate_scale=0.0),
        sigmoid | dict(attention_gate_scale=float("nan")),
    ):
        try:
            kind(**config | change)
        except ValueError:
            continue
        raise AssertionError(f"{change} is taken")
    return "ok"


CHECKS = {
    "tensors": check_load, "reference": check_logits, "cache": check_cache, "generate": check_generate,
    "padding": check_padding, "save": check_save, "gradients": check_gradients, "no tokens": check_no_tokens,
    "loss": check_loss, "bf16": check_bf16, "outputs": check_outputs,
    "refusals": check_refusals,
}  # fmt: skip


# ---------------------------------------------------------------- invariants of the method


def force(model, ffn=None, attention=None):
    """Saturate routers at one expert."""
    for name, module in model.named_modules():
        if type(module).__name__ == "BamRouter":
            expert = attention if ".self_attn." in name else ffn
            if expert is not None:
                row = torch.zeros(module.weight.shape[0])
                row[expert] = 1e4
                # Still a function of the weight, so that a gradient of zero reaches it.
                module.forward = lambda x, row=row, module=module: (
                    row.expand(*x.shape[:-1], -1) + 0 * module.weight.sum()
                )


def copies_equal_the_seed(arguments, family, kv):
    options = ["--method", "bam", "--kv", kv, "--top-k", "soft"]
    out = WORK / f"{family}-copies-{kv}"
    seed = arguments.fixtures / family / "seed"
    command = [arguments.binary, "upcycle", *options, "--seed", seed, "--expert", f"a={seed}", "--expert", f"b={seed}"]
    subprocess.run([*map(str, command), "--out", str(out), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    give_code(arguments, out)
    return close("copies and the seed", largest(logits_of(load(out), TOKENS), logits_of(load_dense(seed), TOKENS)))


def one_expert_equals_its_source(arguments, family, folder):
    worst = 0.0
    for index, name in enumerate(("seed", "code", "law")):
        dense = load_dense(arguments.fixtures / family / name)
        model = load(folder)
        weights = dense.state_dict()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if key in weights and "proj" not in key:  # norms, embeddings, head: what is not an expert's
                    parameter.copy_(weights[key])
        force(model, ffn=index, attention=index)
        worst = max(worst, largest(logits_of(model, TOKENS), logits_of(dense, TOKENS)))
    return close("one expert and its source", worst)


def mean_attention_equals_btx(arguments, folder, btx):
    model, merged = load(folder), load(btx)
    weights = merged.state_dict()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parts = key.split(".attention_experts.")
            if len(parts) == 2:
                parameter.copy_(weights[parts[0] + "." + parts[1].split(".", 1)[1]])
            elif ".self_attn.router." not in key:
                parameter.copy_(weights[key])
    return close("mean attention and BTX", largest(logits_of(model, TOKENS), logits_of(merged, TOKENS)))


def losses_are_right(folder):
    """L_LB is 1 under perfect balance; dL_z/dlogits = 2 · logsumexp · softmax / tokens."""
    losses = sys.modules[type(load(folder)).__module__].router_losses
    experts = 4
    even = torch.full((8, experts), -50.0)
    even[torch.arange(8), torch.arange(8) % experts] = 50.0
    balance, _ = losses([even], 1)
    close("balanced loss and 1", abs(float(balance) - 1))
    logits = torch.randn(5, experts, dtype=torch.float64, requires_grad=True)
    losses([logits], 1)[1].backward()
    expected = 2 * logits.logsumexp(-1, keepdim=True) * logits.softmax(-1) / 5
    return close("gradient of the z-loss", largest(logits.grad, expected.detach()), 1e-12)


# ---------------------------------------------------------------- the run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--fixtures", type=Path, required=True)
    parser.add_argument("--code", type=Path, help="folder of configuration_bam.py and modeling_bam.py")
    parser.add_argument("--only", default="", help="mixtures whose name contains this")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # tiny models: on a busy machine threads wait for each other
    transformers.utils.logging.disable_progress_bar()

    faults, rows = [], []

    def attempt(name, check, *inputs):
        try:
            return check(*inputs)
        except Exception as error:
            faults.append(f"{name}: {check.__name__}: {error}\n{traceback.format_exc(limit=-3)}")
            return "FAULT"

    def run(name, make, *inputs):
        if arguments.only not in name:
            return
        folder = make(arguments, *inputs)
        rows.append([name] + [attempt(name, check, folder) for check in CHECKS.values()])

    for family in FAMILIES:
        for variant, options in VARIANTS.items():
            run(f"{family} {variant}", upcycle, family, variant, options)
        expert, btx = WORK / f"{family}-expert", WORK / f"{family}-btx"
        if expert.exists():
            run(f"{family} lists", lists_of_layers, family, expert)
    for family in ("llama", "llama_bias", "cohere"):
        for name, options in ONE_SEED.items():
            run(f"{family} {name}", upcycle, family, name, options.split(), ())
    for name, changes in BY_HAND.items():
        run(f"hand {name}", by_hand, name, changes)

    print(f"transformers {transformers.__version__}, torch {torch.__version__}; largest absolute differences of logits")
    print_table([["mixture", *CHECKS], *rows])

    oracle = [[family, attempt(family, dense_fixture, arguments, family)] for family in FAMILIES]
    oracle += [[name, attempt(name, dense, name, *made)] for name, made in DENSE.items()]
    print("\nthe oracle: dense models in transformers and in reference.py")
    print_table([["model", "difference"], *oracle])

    invariants = []
    for family in FAMILIES:
        expert, btx = WORK / f"{family}-expert", WORK / f"{family}-btx"
        if not (expert.exists() and btx.exists()):
            continue
        invariants.append([
            family,
            attempt(family, copies_equal_the_seed, arguments, family, "expert"),
            attempt(family, copies_equal_the_seed, arguments, family, "shared"),
            attempt(family, one_expert_equals_its_source, arguments, family, expert),
            attempt(family, mean_attention_equals_btx, arguments, expert, btx),
            attempt(family, losses_are_right, expert),
        ])  # fmt: skip
    if invariants:
        print("\nthe method's invariants (paper notes, 6.1)")
        print_table([["family", "copies = seed", "copies, shared", "one expert", "mean = btx", "losses"], *invariants])
    for fault in faults:
        print(f"\nFAULT {fault}")
    print(f"\n{len(rows)} mixtures, {len(faults)} faults")
    shutil.rmtree(WORK)
    sys.exit(1 if faults or not rows else 0)


def print_table(rows):
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())


if __name__ == "__main__":
    main()
