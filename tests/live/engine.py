"""`bam-convert train --engine torch` against the native engine: losses, checkpoints, resuming, and lost ranks.

Trains the fixtures with both engines by the same command, on 1 and 2 ranks with gloo on the CPU. In float32 every loss
of 30 steps must agree within 1e-5, in bfloat16 within 2 %. Fixtures of all families take four steps. A run that resumes on as many ranks must write the same
bytes.

    python engine.py --binary bam-convert --python v5/bin/python --work target/live/engine [CASE…]

CASE is a part of the names that the script prints. `--full-disk` needs root: it mounts a small file system.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "fixtures"
STEPS = 30
NUMBERS = ("loss", "nll", "load_balance", "z", "gradient_norm")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("cases", nargs="*")
parser.add_argument("--binary", type=Path, required=True)
parser.add_argument("--python", type=Path, default=Path(sys.executable))
parser.add_argument("--work", type=Path, required=True)
parser.add_argument("--full-disk", action="store_true")
options = parser.parse_args()
options.binary, options.work = options.binary.resolve(), options.work.resolve()


# ---- what the runs need


def call(*arguments):
    """Runs the binary, which must succeed."""
    done = subprocess.run([str(part) for part in (options.binary, *arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def prepare():
    """Token folders of short documents, so that rows hold several, and mixtures of the fixtures."""
    options.work.mkdir(parents=True, exist_ok=True)
    for name, pattern in (("code", "src/train/*.rs"), ("law", "docs/reference/*.md")):
        texts = options.work / "texts" / name
        parts = [part[:200] for path in sorted(ROOT.glob(pattern)) for part in path.read_text().split("\n\n")]
        if (options.work / name).exists():
            continue
        texts.mkdir(parents=True, exist_ok=True)
        (texts / "parts.jsonl").write_text("".join(json.dumps({"text": part}) + "\n" for part in parts if part.strip()))
        call("tokenize", texts, "--tokenizer", FIXTURES / "llama/seed", "--out", options.work / name)
    chats = options.work / "chats"
    if not chats.exists():
        # The template of the fixture's own tokenizer, and answers of any length.
        lines = [json.dumps({"prompt": part[:40], "completion": part[40:160]}) for part in parts if len(part) > 50]
        (options.work / "chats.jsonl").write_text("\n".join(lines) + "\n")
        flags = ["--chat", "--tokenizer", FIXTURES / "llama/seed", "--validation", "0.1", "--out", chats]
        call("tokenize", options.work / "chats.jsonl", *flags)
    for seed in ("llama", "cohere"):
        experts = [f"--expert={name}={FIXTURES / seed / name}" for name in ("code", "law")]
        for name, flags in MIXTURES.items():
            out = options.work / f"{seed}-{name}"
            if not out.exists():
                call("upcycle", "--seed", FIXTURES / seed / "seed", *experts, "--out", out, *flags)


MIXTURES = {
    "btx": ["--method", "btx"],
    "bam": ["--method", "bam"],
    "bam-shared": ["--method", "bam", "--kv", "shared"],
    "bam-sigmoid": ["--method", "bam", "--attention-gate", "sigmoid"],
    "bam-choice": ["--method", "bam", "--router-bias", "choice"],
}

# Name, checkpoint, flags of training, ranks.
CASES = [
    ("llama", FIXTURES / "llama/seed", [], (1, 2)),
    ("cohere", FIXTURES / "cohere/seed", [], (1, 2)),
    ("mixtral", FIXTURES / "mixtures/mixtral", [], (1, 2, 3)),
    ("qwen2_moe", FIXTURES / "mixtures/qwen2_moe", ["--documents=separate"], (2,)),
    ("qwen3_moe", FIXTURES / "mixtures/qwen3_moe", [], (2,)),
    ("olmoe", FIXTURES / "mixtures/olmoe", ["--load-balance=soft"], (2,)),
    ("llama-btx", "llama-btx", ["--load-balance=soft"], (1, 2)),
    ("llama-bam", "llama-bam", [], (1, 2)),
    ("llama-bam-shared", "llama-bam-shared", [], (1, 2)),
    ("cohere-bam", "cohere-bam", [], (1, 2)),
    ("llama-bam-sigmoid", "llama-bam-sigmoid", [], (1, 2)),
    ("cohere-bam-shared", "cohere-bam-shared", ["--documents=separate"], (1, 2)),
    ("uneven rows, documents, clip", "llama-bam", ["--documents=separate", "--accumulate=2", "--batch=3", "--clip=0.5"], (2,)),
    ("conversations", "llama-bam", ["--data=chats=CHATS", "--accumulate=2", "--batch=3"], (1, 2)),
    # Steps of eight tokens: at the usual rate, AdamW's first updates turn rounding into differences of 8e-5 in the loss.
    ("conversations far between", FIXTURES / "llama/seed", ["--data=chats=CHATS:9", "--batch=1", "--seq=8", "--learning-rate=1e-5"], (1,)),
    ("conversations joined", FIXTURES / "llama/seed", ["--data=chats=CHATS", "--documents=joined"], (2,)),
    ("balanced by bias", "llama-bam-choice", ["--bias-balancing=0.01", "--aux-loss-coef=0"], (1, 2)),
    ("parts of the model", "llama-bam", ["--train=routers,ffn-experts"], (2,)),
    ("one expert", "llama-bam-shared", ["--train=expert:code", "--router-learning-rate=0.01"], (2,)),
    ("spikes are skipped", "llama-bam", ["--on-spike=1.05:skip"], (2,)),
    ("layers run twice", "llama-bam", ["--gradient-checkpointing"], (2,)),
    ("schedule", "llama", ["--schedule=wsd", "--decay-steps=9", "--floor=0.2"], (2,)),
    ("bf16 llama", FIXTURES / "llama/seed", ["--dtype=bf16"], (1, 2)),
    ("bf16 mixtral", FIXTURES / "mixtures/mixtral", ["--dtype=bf16"], (1, 2)),
    ("bf16 bam", "llama-bam", ["--dtype=bf16"], (1, 2)),
    ("bf16 bam shared", "llama-bam-shared", ["--dtype=bf16"], (1, 2)),
]  # fmt: skip

SHORT = ["--steps=4", "--warmup=0", "--batch=2", "--seq=48", "--documents=separate"]
CASES += [(f"family {path.name}", path, SHORT, (2,)) for path in sorted((FIXTURES / "families").iterdir())]
LISTED = [checkpoint for _, checkpoint, _, _ in CASES]
OTHERS = [path for path in sorted((FIXTURES / "mixtures").iterdir()) if path.is_dir() and path not in LISTED]
CASES += [(f"mixture {path.name}", path, SHORT, (2,)) for path in OTHERS]


def command(checkpoint, out, flags, engine, ranks):
    defaults = {"steps": STEPS, "batch": 4, "seq": 64, "learning-rate": 1e-3, "warmup": 5}
    given = {flag.split("=")[0].removeprefix("--") for flag in flags}
    flags = [flag.replace("CHATS", str(options.work / "chats")) for flag in flags]
    found = [options.binary, "train", path_of(checkpoint), "--out", out, f"--engine={engine}", *flags]
    found += [f"--{name}={value}" for name, value in defaults.items() if name not in given]
    found += [f"--data=code={options.work / 'code'}", f"--data=law={options.work / 'law'}:2", "--keep=9"]
    found += [f"--{name}=10" for name in ("validate-every", "validate-rows", "save-every", "detail-every")]
    if engine == "torch":
        found += ["--python", options.python, f"--nproc-per-node={ranks}", "--device=cpu"]
    return [str(part) for part in found]


def path_of(checkpoint):
    if checkpoint == "llama":
        return FIXTURES / "llama/seed"
    return options.work / checkpoint if isinstance(checkpoint, str) else checkpoint


def train(checkpoint, out, flags, engine="torch", ranks=1, resume=False, code=0):
    """Trains, and returns the log."""
    if not resume:
        clear(out)
    done = subprocess.run(
        command(checkpoint, out, [*flags, *(["--resume"] if resume else [])], engine, ranks), capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == code, f"{out}: exit code {done.returncode}, expected {code}\n{done.stdout}\n{done.stderr}"
    return records(out)


def clear(out):
    for path in (out, Path(f"{out}.run")):
        shutil.rmtree(path, ignore_errors=True)


def records(out):
    return [json.loads(line) for line in open(f"{out}.run/metrics.jsonl", encoding="utf-8")]


# ---- comparisons


def compare(name, native, torch, tolerance):
    """Every record of both logs; returns the largest differences."""
    kinds = ("step", "skip", "detail", "validation")
    pairs = [[record for record in log if record["kind"] in kinds] for log in (native, torch)]
    found = [[(record["kind"], record["step"]) for record in log] for log in pairs]
    assert found[0] == found[1], f"{name}: other records: {found}"
    worst = {}

    def near(what, a, b, most):
        worst[what] = max(worst.get(what, 0.0), abs(a - b) / most)
        assert abs(a - b) <= most, f"{name}: {what} is {a} with the native engine, {b} with torch"

    for a, b in zip(*pairs):
        if a["kind"] == "step":
            assert a["tokens"] == b["tokens"] and a["domains"].keys() == b["domains"].keys()
            assert abs(a["learning_rate"] - b["learning_rate"]) < 1e-15
            for number in NUMBERS:
                # The loss is held to the tolerance itself in float32, other numbers by their size.
                is_absolute = number == "loss" and tolerance < 1e-3
                near(number, a[number], b[number], tolerance * (1.0 if is_absolute else max(1.0, abs(a[number]))))
        if a["kind"] == "validation":
            for domain, measured in a["domains"].items():
                assert measured["tokens"] == b["domains"][domain]["tokens"]
                near("validation", measured["nll"], b["domains"][domain]["nll"], tolerance * max(1.0, measured["nll"]))
        if a["kind"] == "detail":
            # Ratios of small numbers, and in bfloat16 loads are counts of near ties.
            most = max(100 * tolerance, 1e-3) if tolerance < 1e-3 else 0.25
            assert a["roles"].keys() == b["roles"].keys(), f"{name}: {a['roles'].keys()} {b['roles'].keys()}"
            for role, numbers in a["roles"].items():
                for number, value in numbers.items():
                    near(f"{number} of a role", value, b["roles"][role][number], most * max(value, 1e-6))
            for kind in ("ffn_routing", "attention_routing"):
                for p, q in zip(a[kind], b[kind], strict=True):
                    assert p["layer"] == q["layer"]
                    for x, y in zip([p["entropy"], *p["load"], *p["mean_gates"]], [q["entropy"], *q["load"], *q["mean_gates"]]):
                        near("routing", x, y, most)
    return ", ".join(f"{what} {value * tolerance:.1e}" for what, value in worst.items() if what in NUMBERS + ("validation",))


def compare_losses():
    for name, checkpoint, flags, many in CASES:
        if not wanted(name):
            continue
        work = options.work / "runs" / name.replace(" ", "-").replace(",", "")
        work.mkdir(parents=True, exist_ok=True)
        native = train(checkpoint, work / "native", flags, "native")
        tolerance = 2e-2 if any("bf16" in flag for flag in flags) else 1e-5
        for ranks in many:
            log = train(checkpoint, work / f"torch-{ranks}", flags, ranks=ranks)
            worst = compare(f"{name}, {ranks} ranks", native, log, tolerance)
            print(f"{name}, ranks {ranks}: {worst}", flush=True)


def wanted(name):
    return not options.cases or any(case in name for case in options.cases)


def bytes_of(folder):
    """The files of weights and state in a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("*.safetensors"))}


def same_bytes(what, a, b):
    a, b = bytes_of(a), bytes_of(b)
    assert a and a.keys() == b.keys(), f"{what}: other files: {a.keys()}, {b.keys()}"
    assert all(a[name] == b[name] for name in a), f"{what}: other bytes"
    print(f"{what}: the same bytes", flush=True)


# ---- resuming


def start(out, flags=(), ranks=2, checkpoint="llama-bam"):
    clear(out)
    return subprocess.Popen(
        command(checkpoint, out, list(flags), "torch", ranks), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip


def wait_for(out, step):
    """Waits until the log has a step."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if Path(f"{out}.run/metrics.jsonl").exists():
            lines = Path(f"{out}.run/metrics.jsonl").read_text().split("\n")
            if any(f'"kind":"step","step":{step},' in line for line in lines):
                return
        time.sleep(0.02)
    raise AssertionError(f"{out}: no step {step}")


def workers(process):
    """The process ids of the ranks below a run."""
    found, below = [], [process.pid]
    while below:
        children = subprocess.run(["pgrep", "-P", str(below.pop())], capture_output=True, text=True).stdout.split()
        below += [int(child) for child in children]
        for child in children:
            line = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if any(part.endswith(b"train_bam.py") for part in line) and b"torch.distributed.run" not in line:
                found.append(int(child))
    return found


def resume():
    if not wanted("resume"):
        return
    work = options.work / "runs" / "resume"
    work.mkdir(parents=True, exist_ok=True)
    whole = {ranks: work / f"whole-{ranks}" for ranks in (1, 2)}
    logs = {ranks: train("llama-bam", out, [], ranks=ranks) for ranks, out in whole.items()}
    train("llama-bam", work / "again", [], ranks=2)
    same_bytes("resume: a second run", whole[2], work / "again")

    # kill -9 of a rank: the run ends by itself, and says so.
    out = work / "killed"
    process = start(out)
    wait_for(out, 13)
    os.kill(workers(process)[-1], signal.SIGKILL)
    text = process.communicate(timeout=120)[0]
    assert process.returncode not in (0, 130), text
    assert "--resume" in text, f"no word on how to continue:\n{text}"
    print("resume: a run without a rank ends with:", " ".join(text.strip().splitlines()[-2:])[:160], flush=True)
    train("llama-bam", out, [], ranks=2, resume=True)
    same_bytes("resume: after a rank was killed", whole[2], out)
    assert leftovers(out) == [], leftovers(out)

    # kill -9 of bam-convert itself: its ranks end, too.
    out = work / "orphans"
    process = start(out)
    wait_for(out, 13)
    ranks = workers(process)
    process.kill()
    process.wait()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < end, "ranks outlive bam-convert"
        time.sleep(0.1)
    train("llama-bam", out, [], ranks=2, resume=True)
    same_bytes("resume: after bam-convert was killed", whole[2], out)

    # SIGTERM: saved and exit code 3.
    out = work / "stopped"
    process = start(out)
    wait_for(out, 6)
    process.terminate()
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 3, f"exit code {process.returncode}\n{text}"
    assert list(Path(f"{out}.run/checkpoints").iterdir()), text
    log = train("llama-bam", out, [], ranks=2, resume=True)
    same_bytes("resume: after SIGTERM", whole[2], out)
    compare("resume: after SIGTERM", logs[2], log, 1e-12)

    # Other numbers of ranks, and the other engine, from the same checkpoint.
    native = train("llama-bam", work / "native", [], "native")
    for name, begun, engine, ranks in (
        ("1 rank to 2", whole[1], "torch", 2),
        ("2 ranks to 1", whole[2], "torch", 1),
        ("2 ranks to native", whole[2], "native", 1),
        ("native to 2 ranks", work / "native", "torch", 2),
    ):
        out = work / name.replace(" ", "-")
        clear(out)
        shutil.copytree(f"{begun}.run", f"{out}.run")
        for step in (20, 30):
            shutil.rmtree(f"{out}.run/checkpoints/step-{step:08}")
        log = train("llama-bam", out, [], engine, ranks, resume=True)
        print(f"resume: {name}:", compare(name, native, log, 1e-5), flush=True)


def leftovers(out):
    """What a run leaves of states that became checkpoints."""
    scratch = Path(f"{out}.run/engine/state")
    return list(scratch.iterdir()) if scratch.exists() else []


def troubles():
    """Losses that are no numbers, and a disk without room."""
    if wanted("nan"):
        out = options.work / "runs" / "nan"
        out.parent.mkdir(parents=True, exist_ok=True)
        flags = ["--learning-rate=1e30", "--warmup=0", "--clip=0", "--schedule=constant"]
        texts = {}
        for engine in ("native", "torch"):
            clear(out)
            done = subprocess.run(command("llama-bam", out, flags, engine, 2), capture_output=True, text=True)
            assert done.returncode == 2, f"exit code {done.returncode}\n{done.stderr}"
            texts[engine] = [line for line in done.stderr.splitlines() if "finite" in line]
        assert texts["native"] and texts["native"] == texts["torch"], texts
        print("nan:", texts["torch"][0].strip(), flush=True)
    if options.full_disk:
        # Room for no state, for no checkpoint, and for one.
        for size in ("700k", "1500k", "2300k"):
            full_disk(size)


def full_disk(size):
    small = options.work / "small"
    small.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], check=True)
    try:
        done = subprocess.run(command("llama-bam", small / "out", [], "torch", 2), capture_output=True, text=True)
        assert done.returncode == 3, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        text = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert text and ("space" in text[0] or "free" in text[0]), done.stderr
        saved = [path.name for path in (small / "out.run/checkpoints").iterdir()]
        assert saved == (["step-00000010"] if size == "2300k" else []), saved
        print(f"full disk of {size}: {text[0]}", flush=True)
    finally:
        subprocess.run(["umount", small], check=True)


prepare()
compare_losses()
resume()
troubles()
