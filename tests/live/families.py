#!/usr/bin/env python3
"""Every architecture of the transformers that is installed: computed as transformers computes it, or refused.

    python tests/live/families.py --binary target/release/bam-convert --fixtures fixtures [--only TYPE ...]

First the fixtures of described families: their logits by their own class, and mixtures of them by `modeling_bam.py`.
Then the fixtures of other programs' mixtures: by their own class, converted to a BAM by `modeling_bam.py`, and converted back.
Then a tiny random model of every type with a causal language model.
The binary gets it as it is, and with a format file that takes everything from Llama.
A command that succeeds must give the logits of transformers. Prints a line for each model; exits 1 if anything was wrong.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WORK = Path(tempfile.mkdtemp(prefix="bam-families-"))
os.environ["HF_MODULES_CACHE"] = str(WORK / "modules")
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

transformers.utils.logging.disable_progress_bar()
TOKENS = [1, 72, 105, 300, 2, 17, 383, 44, 44, 260, 9, 131, 310, 3, 99, 201]
TOLERANCE = 1e-4
# Under every name that a class may have for it; names that a class does not have are left out.
SHAPE = dict(
    vocab_size=384, hidden_size=32, n_embd=32, d_model=32, intermediate_size=48, ffn_dim=48, num_hidden_layers=4, n_layer=4,
    num_layers=4, n_layers=4, num_attention_heads=4, n_head=4, n_heads=4, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=512, n_positions=512, moe_intermediate_size=24, num_experts=4, num_local_experts=4,
    n_routed_experts=4, num_experts_per_tok=2, sliding_window=5, pad_token_id=0, bos_token_id=0, eos_token_id=2,
)  # fmt: skip
LARGEST = 3_000_000  # parameters
LLAMA_LIKE = """\
extends: llama
name: mine
model_types: [{0}]
architectures: []
"""


def run(binary, *arguments):
    return subprocess.run([str(part) for part in (binary, *arguments)], capture_output=True, text=True)


def ours(binary, folder, *more):
    """The logits, or the error."""
    tokens, dump = WORK / "tokens.json", WORK / "logits.safetensors"
    tokens.write_text(json.dumps(TOKENS))
    dump.unlink(missing_ok=True)
    done = run(binary, "logits", folder, "--tokens", tokens, "--dump", dump, *more)
    if done.returncode:
        assert done.returncode == 2 and "panicked" not in done.stderr, done.stderr
        return done.stderr.splitlines()[0]
    return load_file(dump)["logits"]


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0].float()


def draw(model, seed):
    """Weights wide enough that a wrong norm, bias or rotary style shows in the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = "norm" in key or key.endswith(("ln_f.weight", "ln_1.weight", "ln_2.weight"))
            wide = 1 + 0.2 * noise if norm else 0.1 * noise if "bias" in key else noise / parameter.shape[-1] ** 0.5
            parameter.copy_(0.5 * noise if "embed" in key else wide)


def respelt(folder):
    """The folder with the rotary keys of transformers 4, which misreads the keys of transformers 5 in silence.

    None, where those keys cannot say the bases of both kinds of layers.
    """
    if not transformers.__version__.startswith("4."):
        return folder
    out = WORK / f"respelt-{folder.name}"
    shutil.copytree(folder, out)
    whole = json.loads((folder / "config.json").read_text())
    config = whole.get("text_config", whole)
    kinds = config.pop("rope_parameters")
    rope = kinds.get("full_attention", kinds)
    config["rope_theta"] = rope.pop("rope_theta")
    local = kinds.get("sliding_attention", {}).get("rope_theta", config["rope_theta"])
    if hasattr(CONFIG_MAPPING[config["model_type"]](), "rope_local_base_freq"):
        config["rope_local_base_freq"] = local
    elif local != config["rope_theta"]:
        return None
    if config["model_type"] == "granitemoehybrid":
        config["layer_types"] = ["attention"] * config["num_hidden_layers"]
    if config["model_type"] == "gpt_neox":
        config["rotary_emb_base"] = config.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        name = "rotary_pct" if config["model_type"] == "gpt_neox" else "partial_rotary_factor"
        config[name] = rope.pop("partial_rotary_factor")
    if config["model_type"] == "phi3":  # accepts three keys alone
        rope.pop("original_max_position_embeddings", None)
    is_default = rope["rope_type"] == "default"
    if rope is kinds:  # Some classes accept `type` alone, and those with kinds of layers `rope_type` alone.
        rope = {"type" if key == "rope_type" else key: value for key, value in rope.items()}
    config["rope_scaling"] = None if is_default else rope
    (out / "config.json").write_text(json.dumps(whole))
    return out


def described(binary, folder):
    """How far we are from the class of a described family, and `modeling_bam.py` from us on mixtures of it."""
    found = {}
    config = json.loads((folder / "config.json").read_text())
    source = respelt(folder) if config["model_type"] in CONFIG_MAPPING else None
    if source is not None:
        auto = AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM
        # sdpa of version 4 passes the soft caps over.
        model = auto.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
        found["dense"] = float((ours(binary, folder) - theirs(model)).abs().max())
    other = WORK / f"other-{folder.name}"
    shutil.copytree(folder, other)
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    weights = {key: value * (1 + 0.2 * torch.randn(value.shape, generator=generator)) for key, value in weights.items()}
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    for name, options in {
        "soft": "--method bam --top-k soft",
        "shared": "--method bam --kv shared --top-k 2 --norm-topk-prob true --attention-top-k 1",
        "btx": "--method btx --top-k 2 --norm-topk-prob true",
    }.items():
        out = WORK / f"{folder.name}-{name}"
        done = run(
            binary, "upcycle", *options.split(), "--seed", folder, "--expert", f"x={other}", "--out", out, "--quiet",
            "--router", "normal:0.5",
        )  # fmt: skip
        assert not done.returncode, done.stderr
        expected = ours(binary, out)
        for kind in ("eager", "sdpa"):
            model = AutoModelForCausalLM.from_pretrained(
                out, dtype=torch.float32, trust_remote_code=True, attn_implementation=kind
            )
            found[f"{name}, {kind}"] = float((expected - theirs(model.eval())).abs().max())
    return found


def of_other_programs(binary, folder):
    """How far the class of a mixture is from us, and `modeling_bam.py` on the BAM that it is, also converted back."""
    found, expected = {}, ours(binary, folder)
    config = json.loads((folder / "config.json").read_text())
    model_type = config["model_type"]
    bam, back = WORK / f"bam-{folder.name}", WORK / f"back-{folder.name}"
    for done in (
        run(binary, "convert", folder, bam, "--to", "bam", "--quiet"),
        run(binary, "convert", bam, back, "--to", model_type, "--quiet"),
    ):
        assert not done.returncode, done.stderr
    sources = {"and back": back}
    # Version 4 misreads the rotary keys of version 5; what `convert` writes has both spellings.
    if not transformers.__version__.startswith("4.") or "rope_parameters" not in config:
        sources["as it is"] = folder
    for name, source in sources.items() if model_type in CONFIG_MAPPING else ():
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
        found[name] = float((expected - theirs(model.eval())).abs().max())
    for kind in ("eager", "sdpa"):
        model = AutoModelForCausalLM.from_pretrained(
            bam, dtype=torch.float32, trust_remote_code=True, attn_implementation=kind
        )
        found[f"bam, {kind}"] = float((expected - theirs(model.eval())).abs().max())
    return found


def has(config, key):
    """Whether a configuration has one value for that key."""
    try:
        return hasattr(config, key)
    except Exception:  # Some classes have a value for each layer.
        return False


def tiny(model_type):
    """A small random model of a type, or the reason why it cannot be made."""
    try:
        usual = CONFIG_MAPPING[model_type]()
    except Exception as error:
        return f"no config: {error}"[:120].replace("\n", " ")
    keys = {key: value for key, value in SHAPE.items() if has(usual, key)}
    for _ in range(len(keys)):
        try:
            config = CONFIG_MAPPING[model_type](**keys)
            break
        except Exception as error:  # Some classes refuse keys or sizes that they do not expect.
            named = [key for key in keys if key in str(error)]
            if not named:
                return f"no config: {error}"[:120]
            del keys[named[0]]
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > LARGEST:
            return f"{size} parameters"
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
        draw(model, len(model_type))
        theirs(model)
        return model
    except Exception as error:
        return f"no model: {error}"[:120].replace("\n", " ")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--fixtures", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    print("transformers", transformers.__version__)
    wrong = []
    for folder in sorted((arguments.fixtures / "families").iterdir()):
        found = described(arguments.binary, folder)
        print(folder.name, {name: f"{value:.1e}" for name, value in found.items()})
        wrong += [(folder.name, name, value) for name, value in found.items() if value > TOLERANCE]
    for folder in sorted(path for path in (arguments.fixtures / "mixtures").iterdir() if path.is_dir()):
        found = of_other_programs(arguments.binary, folder)
        print(folder.name, {name: f"{value:.1e}" for name, value in found.items()})
        wrong += [(folder.name, name, value) for name, value in found.items() if not value <= TOLERANCE]
    counts = dict(right=0, refused=0, skipped=0)
    for model_type in arguments.only or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if model_type not in CONFIG_MAPPING:
            continue
        model = tiny(model_type)
        if isinstance(model, str):
            counts["skipped"] += 1
            print(f"{model_type}: skipped: {model}")
            continue
        folder = WORK / f"type-{model_type}"
        try:
            model.save_pretrained(folder)
            # Some classes write other weights than they hold.
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
            expected = theirs(loaded.eval())
        except Exception as error:
            counts["skipped"] += 1
            print(f"{model_type}: skipped: {error}"[:120].replace("\n", " "))
            continue
        format_file = WORK / "mine.yaml"
        format_file.write_text(LLAMA_LIKE.format(model_type))
        for way, more in (("as it is", ()), ("as a llama", ("--format", format_file))):
            found = ours(arguments.binary, folder, *more)
            if isinstance(found, str):
                counts["refused"] += 1
                print(f"{model_type}, {way}: refused: {found.split('config.json: ')[-1][:150]}")
                continue
            difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
            counts["right"] += 1
            print(f"{model_type}, {way}: {difference:.1e}")
            if difference > TOLERANCE:
                wrong.append((model_type, way, difference))
        shutil.rmtree(folder)
    print(counts)
    shutil.rmtree(WORK)
    if wrong:
        sys.exit(f"wrong: {wrong}")


if __name__ == "__main__":
    main()
