#!/usr/bin/env python3
"""Run the Python snippet of a checkpoint's model card as a reader would paste it, in the folder of the checkpoint.

    VENV/bin/python tests/live/card.py DIR...

Exits with 1 where a card has no snippet, or the snippet fails. The installed transformers must have the model's family.
"""

import os
import re
import subprocess
import sys


def main() -> int:
    failed = 0
    for folder in sys.argv[1:]:
        with open(os.path.join(folder, "README.md"), encoding="utf-8") as file:
            found = re.search(r"```python\n(.*?)```\n", file.read(), re.DOTALL)
        if found is None:
            print(f"{folder}: the card has no Python snippet")
            failed += 1
            continue
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        run = subprocess.run(
            [sys.executable, "-c", found[1]],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        print(f"{folder}: exit code {run.returncode}: {(run.stdout or run.stderr).strip()[-200:]!r}")
        # transformers asks on the terminal where a call lacks trust_remote_code.
        failed += run.returncode != 0 or "Do you wish to run" in run.stdout
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
