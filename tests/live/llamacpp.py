#!/usr/bin/env python3
"""GGUF files of the binary in llama.cpp: the same greedy tokens as transformers has from the same f16 weights.

    python tests/live/llamacpp.py --binary target/release/bam-convert --tokens 24 DIR…

needs xllamacpp (llama.cpp, built), transformers and torch. Each DIR (llama, mistral or mixtral) is written in f16 as a GGUF
file and as a folder; llama.cpp continues a prompt of token ids from the one, transformers in float32 from the other, greedily.
Where they part, the two tokens' logits may differ by at most 0.05: f16 arithmetic rounds. The file taken back must be
that folder, and a text must be the same tokens in llama.cpp and in the folder's tokenizer.
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=lambda path: Path(path).resolve(), required=True)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    work, faults = Path(tempfile.mkdtemp(prefix="llamacpp-")), 0
    for number, folder in enumerate(arguments.folders):
        narrow, gguf, back = (work / f"{number}{end}" for end in ("", ".gguf", "-back"))
        for words in (
            (folder, narrow, "--dtype", "f16"),
            (folder, gguf, "--to", "gguf", "--dtype", "f16"),
            (gguf, back),
        ):
            command = [arguments.binary, "convert", *words]
            subprocess.run([str(word) for word in command], check=True, capture_output=True)
        same = subprocess.run([arguments.binary, "diff", back, narrow], capture_output=True).returncode == 0
        tokenizer = transformers.AutoTokenizer.from_pretrained(narrow)
        model = transformers.AutoModelForCausalLM.from_pretrained(narrow, dtype=torch.float32).eval()
        prompt = tokenizer(TEXT)["input_ids"]
        llama = server(gguf)
        read = ask(llama, "tokenize", content=TEXT, add_special=True)["tokens"]
        settings = {"n_predict": arguments.tokens, "temperature": 0.0, "ignore_eos": True, "return_tokens": True}
        chosen = ask(llama, "completion", prompt=prompt, **settings)["tokens"]
        expected, gap = list(prompt), None
        with torch.no_grad():
            for token in chosen:
                logits = model(torch.tensor([expected])).logits[0, -1]
                if int(logits.argmax()) != token:
                    gap = float(logits.max() - logits[token])
                    break
                expected.append(token)
        equal = len(expected) - len(prompt)
        bad = not same or read != prompt or len(chosen) != arguments.tokens or (gap is not None and gap > 0.05)
        faults += bad
        parted = "" if gap is None else f", then two tokens {gap:.1e} apart"
        print(f"{folder}: {equal} of {len(chosen)} greedy tokens equal{parted}; taken back {'equal' if same else 'OTHER'}; "
              f"text {'equal' if read == prompt else 'OTHER'}{' FAULT' if bad else ''}")  # fmt: skip
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
