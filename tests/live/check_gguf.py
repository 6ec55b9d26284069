#!/usr/bin/env python3
"""Compare what `bam-convert convert FILE.gguf DIR` wrote with transformers' own reading of the GGUF file.

    python tests/live/check_gguf.py FILE.gguf DIR [--new-tokens 20] [--no-generate]

needs torch, transformers, gguf and safetensors. (The name gguf.py would hide the package of this name.) Checks:

- DIR holds the same tensors bit for bit after the one cast to DIR's dtypes;
- both tokenizers give the same ids for every sample and decode them alike;
- the chat template is the same;
- both models continue a prompt by the same greedy tokens.

Prints a table; exits with 1 if anything differs.
"""

import argparse
import logging
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLES = [
    "The capital of France is Paris, and the river is the Seine.", "Hello, world!", "a", "", " ", "I'm can't we'll they've",
    "In 1969, 2 men walked on the moon; 600,000,000 people watched.", "3.14159265358979", "0", "00012", "1,234.56e-7",
    "def mean(xs):\n    return sum(xs) / len(xs)\n", "for (int i = 0; i < 10; i++) { a[i] *= 2; }",
    "fn main() -> Result<(), Box<dyn Error>> {\n\tOk(())\n}", "SELECT * FROM t WHERE x >= 10 AND name LIKE '%a_b%';",
    "x = {'k': [1, 2.5, None], \"q\": \"\\n\"}", "#!/bin/sh\nset -eu\ncurl -sSf https://example.org/a?b=c&d=e#f | sh\n",
    "今天的天气很好，我们去公园散步。", "专家混合模型由多个前馈网络组成", "中文 and English 混在一起 2024 年", "日本語のテキスト、カタカナ。", "한국어 문장입니다.",
    "Привет, мир!", "مرحبا بالعالم", "naïve café déjà-vu Straße ﬁ", "🙂", "👩‍👩‍👧‍👦 family 🏳️‍🌈 flags 🇫🇷", "e\u0301 vs \u00e9",
    "two  spaces   three    four", "trailing spaces   ", "   leading spaces", "\t\ttabs\tand\n\n\nnewlines\r\n", "\u00a0nbsp\u200bzero",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|endoftext|>b", "<|im_end|>", "<s>old</s> <unk> <pad>",
    "snake_case camelCase SCREAMING kebab-case", "...!!??--==>>", "\\frac{1}{n}\\sum_{i=1}^{n} x_i^2", "\x00\x01\x7f",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
]  # fmt: skip
PROMPT = "The capital of France is"


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor as it is stored."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}
    return tensors


def bits(tensor: torch.Tensor) -> torch.Tensor:
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(widths[tensor.element_size()])


def compare_tensors(ours: dict, theirs: dict) -> list[str]:
    faults = [f"{name}: not in the folder" for name in sorted(theirs.keys() - ours.keys())]
    faults += [f"{name}: not in the GGUF file" for name in sorted(ours.keys() - theirs.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        want = theirs[name].to(ours[name].dtype)
        if want.shape != ours[name].shape:
            faults.append(f"{name}: shape {list(ours[name].shape)}, transformers has {list(want.shape)}")
        elif different := int((bits(want) != bits(ours[name])).sum()):
            worst = (want.double() - ours[name].double()).abs().max().item()
            faults.append(f"{name}: {different} of {want.numel()} elements differ, by at most {worst:.3g}")
    return faults


def compare_tokenizers(ours, theirs) -> list[str]:
    faults = []
    for text in SAMPLES:
        mine, his = (t(text)["input_ids"] for t in (ours, theirs))
        if mine != his:
            faults.append(f"{text!r}: {mine}, transformers' {his}")
        elif ours.decode(mine) != theirs.decode(his):
            faults.append(f"{text!r}: decoded {ours.decode(mine)!r}, transformers' {theirs.decode(his)!r}")
    return faults


def compare_templates(ours, theirs) -> list[str]:
    if theirs.chat_template is None:
        return [] if ours.chat_template is None else ["the folder has a chat template, the GGUF file has none"]
    if ours.chat_template is None:
        return ["the GGUF file has a chat template, the folder has none"]
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello 1 2"}, {"role": "user", "content": "?"}]
    mine, his = (t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (ours, theirs))
    return [] if mine == his else [f"chat template: {mine!r}, transformers' {his!r}"]


def greedy(model, ids: list[int], count: int) -> list[int]:
    with torch.no_grad():
        for _ in range(count):
            ids = [*ids, model(torch.tensor([ids])).logits[0, -1].argmax().item()]
    return ids[-count:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--new-tokens", type=int, default=20)
    parser.add_argument("--no-generate", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    file = {"gguf_file": arguments.gguf.name}
    theirs = AutoModelForCausalLM.from_pretrained(arguments.gguf.parent, **file, dtype=torch.float32)
    ours = read_folder(arguments.folder)
    state = theirs.state_dict()
    if theirs.config.tie_word_embeddings:
        state.pop("lm_head.weight")  # the embedding again
    rows = [("tensors", len(state), compare_tensors(ours, state))]

    model = AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
    keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
    keys += ["head_dim", "vocab_size", "tie_word_embeddings", "max_position_embeddings", "hidden_act"]
    keys += ["bos_token_id", "eos_token_id"]
    pairs = {key: (getattr(model.config, key, None), getattr(theirs.config, key, None)) for key in keys}
    pairs["rope_theta"] = tuple(rope_theta(m.config) for m in (model, theirs))
    wrong = [f"{key}: {mine!r}, transformers' {his!r}" for key, (mine, his) in pairs.items() if mine != his]
    if abs(model.config.rms_norm_eps / theirs.config.rms_norm_eps - 1) > 1e-6:
        wrong.append(f"rms_norm_eps: {model.config.rms_norm_eps!r}, transformers' {theirs.config.rms_norm_eps!r}")
    rows.append(("config keys", len(pairs) + 1, wrong))

    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    their_tokenizer = AutoTokenizer.from_pretrained(arguments.gguf.parent, **file)
    rows.append(("text samples", len(SAMPLES), compare_tokenizers(tokenizer, their_tokenizer)))
    rows.append(("chat template", 1, compare_templates(tokenizer, their_tokenizer)))

    if not arguments.no_generate:
        # The GGUF's weights after the same cast, so that both models compute with the same numbers.
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if name in ours:
                    parameter.copy_(parameter.to(ours[name].dtype))
        ids = their_tokenizer(PROMPT)["input_ids"]
        mine, his = (greedy(m.eval(), ids, arguments.new_tokens) for m in (model, theirs))
        rows.append(("greedy tokens", len(his), [] if mine == his else [f"{mine}, transformers' {his}"]))
        print(f"{PROMPT!r} -> {tokenizer.decode(mine)!r}")

    print(f"{'what':14} {'checked':>8} {'faults':>7}")
    for what, checked, faults in rows:
        print(f"{what:14} {checked:8} {len(faults):7}")
    faults = [f"{what}: {text}" for what, _, texts in rows for text in texts]
    for text in faults:
        print("FAULT:", text)
    print("all equal" if not faults else f"FAULTS: {len(faults)}")
    return 1 if faults else 0


def rope_theta(config) -> float:
    return (getattr(config, "rope_parameters", None) or {}).get("rope_theta") or config.rope_theta


if __name__ == "__main__":
    sys.exit(main())
