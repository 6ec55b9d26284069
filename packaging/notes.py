"""Print the section of CHANGELOG.md about a version: python3 packaging/notes.py 0.2.0"""

import sys
from pathlib import Path

changelog = (Path(__file__).resolve().parent.parent / "CHANGELOG.md").read_text()
sections = changelog.split("\n## ")
found = [section for section in sections if section.startswith(f"[{sys.argv[1]}]")]
if len(found) != 1:
    sys.exit(f"CHANGELOG.md has {len(found)} sections about {sys.argv[1]}; expected 1")
print(found[0].split("\n", 1)[1].strip())
