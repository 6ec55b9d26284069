#!/usr/bin/env python3
"""GGUF files of the binary in llama.cpp: the same greedy tokens as transformers has from the same weights.

    python tests/live/llamacpp.py --binary target/release/bam-convert --tokens 24 [--sentencepiece] DIR…

needs xllamacpp (llama.cpp, built), transformers and torch; with --sentencepiece, which adds a small model with random weights
and a tokenizer as Llama 2 has one, also sentencepiece. Each DIR (llama, mistral or mixtral) is written in f16 as a GGUF
file and as a folder. Both continue a prompt of token ids greedily: llama.cpp with the file, transformers in float32 with the folder.
Where they part, the two tokens' logits may differ by at most 0.05: f16 arithmetic rounds. The file taken back must be
that folder, and a text must be the same tokens in llama.cpp and in the folder's tokenizer.

The same for q8_0, against the file's values taken back to float32. llama.cpp rounds what it multiplies with these weights to
8 bits as well. So every token is compared after the same earlier tokens, and one in ten may differ.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import torch
import transformers
import xllamacpp

ROOT = Path(__file__).resolve().parents[2]
TEXT = "def mean(values):\n    total = 0.0\n# The year 2024 had 366 days; it's close.\n"


def server(path):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path)
    parameters.n_ctx, parameters.warmup, parameters.cpuparams.n_threads = 256, False, 2
    return xllamacpp.Server(parameters)


def ask(llama, what, **body):
    request = urllib.request.Request(
        f"{llama.listening_address}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return json.loads(urllib.request.urlopen(request, timeout=120).read())


def sentencepiece_llama(folder):
    """A model with random weights and a byte-pair tokenizer of the sentencepiece library, with bytes to fall back to."""
    import sentencepiece

    folder.mkdir()
    lines = [line for path in sorted(ROOT.glob("docs/**/*.md")) for line in path.read_text().splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=1024, model_type="bpe",
        byte_fallback=True, character_coverage=0.9995, split_digits=True, allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False, normalization_rule_name="identity", num_threads=1, minloglevel=2,
    )  # fmt: skip
    tokenizer = transformers.LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    expected = [pieces.bos_id(), *pieces.encode(TEXT)]
    if (found := tokenizer(TEXT)["input_ids"]) != expected:
        sys.exit(f"transformers reads the text as {found}, sentencepiece as {expected}")
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=1024, num_key_value_heads=2, initializer_range=0.2, bos_token_id=1, eos_token_id=2, **sizes
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)
    return folder


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def judged(model, prompt, chosen):
    """For each chosen token, how far its logit is below the largest after the same tokens before it."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + chosen])).logits[0, len(prompt) - 1 : -1]
    return (logits.max(-1).values - logits.gather(1, torch.tensor(chosen)[:, None])[:, 0]).tolist()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--sentencepiece", action="store_true")
    parser.add_argument("folders", nargs="*", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    work, faults = Path(tempfile.mkdtemp(prefix="llamacpp-")), 0
    folders = arguments.folders + ([sentencepiece_llama(work / "sentencepiece")] if arguments.sentencepiece else [])
    for number, folder in enumerate(folders):
        narrow, gguf, back, eight, wide = (work / f"{number}{end}" for end in ("", ".gguf", "-back", "-q8_0.gguf", "-q8_0"))
        for words in (
            (folder, narrow, "--dtype", "f16"),
            (folder, gguf, "--to", "gguf", "--dtype", "f16"),
            (gguf, back),
            (folder, eight, "--to", "gguf", "--quantize", "q8_0"),
            (eight, wide, "--dtype", "f32"),
        ):
            command = [arguments.binary, "convert", *words]
            subprocess.run([str(word) for word in command], check=True, capture_output=True)
        same = subprocess.run([arguments.binary, "diff", back, narrow], capture_output=True).returncode == 0
        tokenizer = transformers.AutoTokenizer.from_pretrained(narrow)
        prompt = tokenizer(TEXT)["input_ids"]
        llama = server(gguf)
        read = ask(llama, "tokenize", content=TEXT, add_special=True)["tokens"]
        settings = {"n_predict": arguments.tokens, "temperature": 0.0, "ignore_eos": True, "return_tokens": True}
        chosen = ask(llama, "completion", prompt=prompt, **settings)["tokens"]
        gaps = judged(load(narrow), prompt, chosen)
        equal = next((at for at, gap in enumerate(gaps) if gap > 0), len(gaps))
        gap = gaps[equal] if equal < len(gaps) else None
        bad = not same or read != prompt or len(chosen) != arguments.tokens or (gap is not None and gap > 0.05)
        del llama
        rounded = judged(load(wide), prompt, ask(server(eight), "completion", prompt=prompt, **settings)["tokens"])
        others = [gap for gap in rounded if gap > 0]
        bad |= len(rounded) != arguments.tokens or 10 * len(others) > len(rounded)
        faults += bad
        parted = "" if gap is None else f", then two tokens {gap:.1e} apart"
        print(f"{folder}: {equal} of {len(chosen)} greedy tokens equal{parted}; taken back {'equal' if same else 'OTHER'}; "
              f"text {'equal' if read == prompt else 'OTHER'}; q8_0: {len(rounded) - len(others)} of {len(rounded)} equal"
              f"{f', at most {max(others):.1e} apart' if others else ''}{' FAULT' if bad else ''}")  # fmt: skip
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
