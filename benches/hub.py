#!/usr/bin/env python3
"""`bam-convert pull` beside `curl`, from the Hub server of the tests on loopback.

    python benches/hub.py BINARY HUB_SERVER [--gigabytes N] [--work FOLDER] [--rounds N]

makes a file of random bytes below --work, and serves it over LFS (`cargo build --release -p hub-server`).
It fetches the file in turns: with curl to a file, and with `pull` to a folder, which hashes it and makes it durable. Prints JSON: the seconds of
each run, a `sync` included in both, the ratio of the medians, and the most memory that `pull` held, in MiB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

REPOSITORY = "org/name"


def timed(command: list, environment: dict) -> tuple[float, int]:
    """Seconds, and the largest resident set in KiB."""
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    assert status == 0, command
    return time.perf_counter() - start, usage.ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", type=Path)
    parser.add_argument("server", type=Path)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path("target/hub-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    source, out = arguments.work / "source", arguments.work / "out"
    source.mkdir(parents=True, exist_ok=True)
    (source / "config.json").write_text("{}")
    with open(source / "model.safetensors", "wb") as file:
        for _ in range(int(arguments.gigabytes * 1024)):
            file.write(os.urandom(1 << 20))
    command = [arguments.server, "--data", arguments.work / "data", "--put", f"{REPOSITORY}={source}"]
    server = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    url, token = server.stdout.readline().strip(), server.stdout.readline().strip()
    environment = os.environ | {"HF_ENDPOINT": url, "HF_TOKEN": token, "XDG_CACHE_HOME": str(arguments.work / "cache")}
    curl = ["curl", "-sfL", "-H", f"Authorization: Bearer {token}", "-o", out / "file"]
    curl.append(f"{url}/{REPOSITORY}/resolve/main/model.safetensors")
    runs: dict[str, list] = {"curl": [], "pull": []}
    memory = 0
    try:
        for _ in range(arguments.rounds):
            for name, line in {"curl": curl, "pull": [arguments.binary, "pull", REPOSITORY, out / "pulled"]}.items():
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir()
                seconds, resident = timed(line, environment)
                runs[name].append(round(seconds, 3))
                memory = max(memory, resident // 1024 if name == "pull" else 0)
    finally:
        server.kill()
        shutil.rmtree(arguments.work)
    ratio = statistics.median(runs["curl"]) / statistics.median(runs["pull"])
    print(json.dumps({**runs, "speed_of_curl": round(ratio, 2), "pull_mib": memory}, indent=2))


if __name__ == "__main__":
    main()
