"""`tokenize --chat` against transformers on published chat templates: ids, and the mask of assistant tokens.

    pip download trl==1.16.0 --no-deps && unzip trl-1.16.0-*.whl 'trl/chat_templates/*'
    python chat.py --binary bam-convert --templates trl/chat_templates --work target/live/chat

Each template meets each conversation alone. Where transformers has no text, bam-convert must have none. A template with
`{% generation %}` has the mask of `return_assistant_tokens_mask`; for the others answers are found here by prefixes, and
where these do not hold, bam-convert must refuse. Prints a line for each template, and what differs.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "fixtures/chat"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--binary", type=Path, required=True)
parser.add_argument("--templates", type=Path, required=True)
parser.add_argument("--work", type=Path, required=True)
parser.add_argument("names", nargs="*")
options = parser.parse_args()

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Tells the weather.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "東京"}}}


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


CONVERSATIONS = {
    "one": {"messages": [user("What is 2 + 2?"), answer("It is 4.")]},
    "unicode": {"messages": [user("naïve café 你好"), answer("天地 🎉 été\n\n  and more ")]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, user("Hi"), answer("Hello"), user("Bye"), answer("So long.")]},
    "three": {"messages": [user("a"), answer("b"), user("c"), answer("d\n"), user("e"), answer(" f")]},
    "thinking": {"messages": [user("a"), answer("b", reasoning_content="Because."), user("c"), answer("d", reasoning_content="Since.")]},
    "tools": {"messages": [user("Weather?"), answer("", tool_calls=[CALL]), {"role": "tool", "name": "get_weather", "content": "sunny"}, answer("It is sunny.")], "tools": [TOOL]},
    "open": {"messages": [user("a"), answer("b"), user("c")]},
}  # fmt: skip


def expected(tokenizer, template, line):
    """Ids and mask of transformers, or its error."""
    turns = line["messages"]
    settings = {"chat_template": template, "tools": line.get("tools")}

    def text(turns, prompt):
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **settings)

    try:
        if re.search(r"\{%-?\s*generation\s*-?%\}", template):
            made = tokenizer.apply_chat_template(
                turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **settings
            )
            if not any(made["assistant_masks"]):
                return "no mark"
            return made["input_ids"], made["assistant_masks"]
        whole, spans = text(turns, False), []
        for number, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before, through = text(turns[:number], True), text(turns[: number + 1], False)
            if not (through.startswith(before) and whole.startswith(through)):
                return "no prefix"
            added = through[len(before) :]
            special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
            if added.rstrip().endswith(tuple(special)):
                added = added.rstrip()
            spans.append((len(before), len(before) + len(added)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    made = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    mask = [int(any(start < end and stop > begin for begin, end in spans)) for start, stop in made["offset_mapping"]]
    return made["input_ids"], mask


def found(folder, line, name):
    """Ids and mask of our token folder, or its error."""
    lines, out = folder / f"{name}.jsonl", options.work / f"{folder.name}-{name}"
    lines.write_text(json.dumps(line) + "\n")
    arguments = [options.binary, "tokenize", lines, "--chat", "--tokenizer", folder, "--validation", "0", "--out", out]
    done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[0]
    ids = (out / "train-00000.bin").read_bytes()
    ids = [int.from_bytes(ids[at : at + 2], "little") for at in range(0, len(ids), 2)]
    return ids, list((out / "train-00000.mask").read_bytes())


def main():
    wrong, counts = [], Counter()
    for path in sorted(options.templates.glob("*.jinja")):
        if options.names and path.stem not in options.names:
            continue
        folder = options.work / path.stem
        shutil.rmtree(folder, ignore_errors=True)
        for old in options.work.glob(f"{path.stem}-*"):
            shutil.rmtree(old)
        folder.mkdir(parents=True)
        shutil.copy(FIXTURE / "tokenizer.json", folder)
        shutil.copy(FIXTURE / "tokenizer_config.json", folder)
        shutil.copy(path, folder / "chat_template.jinja")
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        template, results = path.read_text(), []
        for name, line in CONVERSATIONS.items():
            theirs, ours = expected(tokenizer, template, line), found(folder, line, name)
            if isinstance(theirs, str):
                same, result = isinstance(ours, str), "refused"
            else:
                same, result = ours == theirs, "equal"
            if not same:
                result = "DIFFERS"
                wrong.append((path.stem, name, theirs, ours))
            counts[result] += 1
            results.append(f"{name} {result}")
        print(f"{path.stem}: {', '.join(results)}")
    for template, name, theirs, ours in wrong:
        print(f"\n{template}, {name}:\n  transformers: {str(theirs)[:600]}\n  bam-convert:  {str(ours)[:600]}")
    print(dict(counts))
    sys.exit(bool(wrong))


main()
