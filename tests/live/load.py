#!/usr/bin/env python3
"""Say what the installed transformers reads from a checkpoint folder, so that two versions can be compared.

    VENV_A/bin/python tests/live/load.py DIR > a;  VENV_B/bin/python tests/live/load.py DIR > b;  diff a b

Loads the folder in float32 and prints one `key value` a line: the config values that versions spell differently, then
facts of the logits [seq, vocab] of fixed token ids. Logits are rounded to 5 digits, for kernels differ between versions.
Where the folder has a tokenizer, it also prints what the tokenizer gives the model, and how the model continues a text.
`--trust-remote-code` loads a BAM folder through its own modeling_bam.py. `--golden FILE` compares with the tensor `logits` of a
safetensors file (largest absolute difference at most `--tolerance`), and exits with 1 if they differ.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

IDS = [1, 72, 105, 300, 2, 17, 383, 44, 44, 260, 9, 131, 310, 3, 99, 201]  # TOKENS of fixtures/make.py


def frequencies(model) -> list[str]:
    """The rotary frequencies the model computes with: what came of the config's keys, however they are spelled."""
    found = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq") and "original" not in name]
    return [f"{x:.6g}" for x in found[0].tolist()] if found else []


def theta(config) -> float | None:
    """rope_theta as this version of transformers knows it: 4.x looks at the top level only."""
    if transformers.__version__.startswith("4."):
        return getattr(config, "rope_theta", None)
    return (getattr(config, "rope_parameters", None) or {}).get("rope_theta")


def continued(model, folder: str, trust_remote_code: bool) -> dict[str, object]:
    """What the tokenizer gives the model for a text, and the tokens that the model puts after it."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
    return {
        "tokenizer": sorted(inputs),
        "longest_text": tokenizer.model_max_length,
        "special_tokens": dict(sorted(tokenizer.special_tokens_map.items())),
        "continued": ids,
        "text": repr(tokenizer.decode(ids)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--trust-remote-code", action="store_true")
    parser.add_argument("--golden")
    parser.add_argument("--tolerance", type=float, default=2e-4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    model, notes = AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=torch.float32, trust_remote_code=arguments.trust_remote_code, output_loading_info=True
    )
    config = AutoConfig.from_pretrained(arguments.folder, trust_remote_code=arguments.trust_remote_code)
    with torch.no_grad():
        logits = model.eval()(torch.tensor([IDS])).logits[0].double()
    facts = {
        "model_type": config.model_type,
        "dtype": str(getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)).removeprefix("torch."),
        "eps": next((getattr(config, k) for k in ("rms_norm_eps", "layer_norm_eps") if hasattr(config, k)), None),
        "rope_theta": theta(config),
        "inv_freq": " ".join(frequencies(model)),
        "tied": model.get_input_embeddings().weight is model.get_output_embeddings().weight,
        "missing_keys": sorted(notes["missing_keys"]),
        "unexpected_keys": sorted(notes["unexpected_keys"]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "logits_sum": f"{logits.sum().item():.5g}",
        "logits_abs_sum": f"{logits.abs().sum().item():.5g}",
        "logits_last_argmax": logits[-1].argmax().item(),
    }
    if Path(arguments.folder, "tokenizer.json").exists():
        facts |= continued(model, arguments.folder, arguments.trust_remote_code)
    for key, value in facts.items():
        print(f"{key:20} {value}")
    if arguments.golden:
        from safetensors.torch import load_file

        off = (logits - load_file(arguments.golden)["logits"].double()).abs().max().item()
        print(f"{'golden_max_abs':20} {off:.2e}", file=sys.stderr)
        return int(not off <= arguments.tolerance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
