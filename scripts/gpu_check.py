"""The stages of gpu-check.sh. Each has a time limit, and the JSON file is whole after each of them.

A stage has one of these states: `passed`, `failed`, `measured` (numbers without a bound), `not run` with the reason, and
`timed out`. Nothing that did not run counts as passed.

The exit code is 0 if each comparison passed, 1 if a stage failed or timed out, 3 if a comparison on the GPU did not run, and
128 and the number of a signal that ended the check.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# What remains of seven minutes for writing and cleaning up.
SECONDS = 400
# Signals that end the check, with all that it has started.
ENDS = (signal.SIGINT, signal.SIGTERM)
# nvidia-smi has this order of GPUs, and CUDA has it with this variable only.
ENVIRONMENT = {**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
# Largest differences from the CPU: of logits, and of the loss of any of 50 steps.
LOGITS_BOUND = 1e-3
LOSS_BOUNDS = {"f32": 1e-3, "bf16": 5e-2}

# The run whose losses are compared.
COMPARED = ["--steps", 50, "--batch", 2, "--seq", 48, "--learning-rate", "1e-3", "--save-every", 25]

TINY = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "initializer_range": 0.08, "hidden_act": "silu",
}  # fmt: skip
# The shapes of SmolLM2-135M and Qwen3-0.6B, with random weights.
SMALL = {
    **TINY, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49152, "initializer_range": 0.02,
}  # fmt: skip
MEDIUM = {
    **TINY, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "head_dim": 128,
    "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
    "vocab_size": 151936, "initializer_range": 0.02, "attention_bias": False,
}  # fmt: skip


class NotRun(Exception):
    """A stage that cannot run, with the reason."""


class Failed(Exception):
    """A stage that ran and found a fault."""


class TimedOut(Exception):
    """A command that was still running at its limit."""


class Check:
    def __init__(self, options, work):
        self.options, self.work, self.began = options, work, time.monotonic()
        self.device = "cpu" if options.cpu else options.device
        self.report = {"format_version": 1, "device": self.device, "mode": "cpu" if options.cpu else "gpu", "stages": []}
        if options.cpu:
            self.report["note"] = "the device is the CPU, so each comparison with the CPU is one of a run with itself"
        self.facts = {"models": set()}

    # ---- running

    def left(self):
        return self.options.seconds - (time.monotonic() - self.began)

    def command(self, words, limit):
        """Runs a command and all that it starts, for `limit` seconds at most. Returns its output and its duration."""
        limit = min(limit, self.left())
        if limit <= 0:
            raise TimedOut(f"no time was left for {name_of(words)}")
        started, process = time.monotonic(), None
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            # A signal waits until the process is known, and can be ended.
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
            try:
                process = subprocess.Popen(
                    [str(word) for word in words], stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=ENVIRONMENT,
                    start_new_session=True, preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS),
                )  # fmt: skip
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                raise TimedOut(f"{name_of(words)} was still running after {limit:.0f} s") from None
            finally:
                if process:
                    end(process)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)
            out.seek(0)
            err.seek(0)
            said, errors = out.read(), err.read()
        if code != 0:
            lines = [line for line in errors.splitlines() if line.strip()][-4:]
            raise Failed(f"{name_of(words)} ended with {code}: " + " | ".join(lines))
        return said, time.monotonic() - started

    def bam(self, *words, limit=60):
        return self.command([self.options.binary, *words], limit)

    def stage(self, name, work, limit, compares=False):
        """Runs a stage and records it. The exit code asks that those which compare have passed."""
        started, found = time.monotonic(), {"stage": name, "compares": compares}
        try:
            if self.left() < 2:
                raise NotRun("no time left")
            found.update(work(min(limit, self.left())))
        except NotRun as reason:
            found.update(status="not run", reason=str(reason))
        except TimedOut as reason:
            found.update(status="timed out", reason=str(reason))
        except Exception as reason:  # The next stages run whatever this one met.
            found.update(status="failed", reason=f"{type(reason).__name__}: {reason}"[:1000])
        found["seconds"] = round(time.monotonic() - started, 2)
        self.report["stages"].append(found)
        self.write()
        print(f"{found['status']:>9}  {name}  {found['seconds']} s  {found.get('reason', '')}", file=sys.stderr)

    def write(self):
        counts = {}
        for stage in self.report["stages"]:
            counts[stage["status"]] = counts.get(stage["status"], 0) + 1
        self.report["counts"], self.report["total_seconds"] = counts, round(time.monotonic() - self.began, 1)
        partial = self.options.out.with_name(self.options.out.name + ".partial")
        partial.write_text(json.dumps(self.report, indent=2) + "\n")
        partial.replace(self.options.out)

    # ---- what is there

    def machine(self, limit):
        facts = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()}
        query = "name,driver_version,memory.total,compute_cap,index,uuid"
        self.facts["gpu"] = None
        number = int(self.options.device.partition(":")[2] or 0)
        if shutil.which("nvidia-smi"):
            words = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
            try:
                rows = [row.split(", ") for row in self.command(words, limit)[0].strip().splitlines()]
                facts["gpus"] = [dict(zip(query.split(","), row)) for row in rows]
                self.facts["gpu"] = card(facts["gpus"], number, os.environ.get("CUDA_VISIBLE_DEVICES"))
            except (Failed, TimedOut) as reason:
                facts["nvidia-smi"] = str(reason)
        else:
            facts["nvidia-smi"] = "not found"
        self.report["card"] = self.facts["gpu"]
        if not self.facts["gpu"] and not self.options.cpu:
            raise NotRun(f"no GPU found: {facts.get('nvidia-smi', f'nvidia-smi lists none with the number {number}')}")
        return {"status": "measured", **facts}

    def binary(self, limit):
        said, _ = self.bam("--version", "--verbose", limit=limit)
        features = re.search(r"^features:(.*)$", said, re.MULTILINE)
        self.facts["features"] = features.group(1).replace(",", " ").split() if features else []
        return {"status": "passed", "version": said.strip().splitlines(), "features": self.facts["features"]}

    def python(self, limit):
        """Versions in the Python that trains, or what it lacks."""
        script = (
            "import importlib, json, sys\nfound = {'python': sys.version.split()[0]}\n"
            "for name in ('torch', 'transformers', 'numpy'):\n    try:\n        module = importlib.import_module(name)\n"
            "        found[name] = module.__version__\n    except Exception as error:\n"
            "        found[name] = None\n        found[name + '_problem'] = str(error)[:200]\n"
            "if found['torch']:\n    import torch\n    found['cuda'] = torch.version.cuda\n"
            "    found['gpus'] = torch.cuda.device_count()\nprint(json.dumps(found))\n"
        )
        said, _ = self.command([self.options.python, "-c", script], limit)
        found = json.loads(said.strip().splitlines()[-1])
        lacking = [name for name in ("torch", "transformers", "numpy") if not found[name]]
        if not lacking and not self.options.cpu and not found["gpus"]:
            lacking = ["a torch that finds a GPU"]
        self.facts["lacking"] = lacking
        if lacking:
            raise NotRun(f"{self.options.python} lacks {', '.join(lacking)}")
        return {"status": "measured", **found}

    def need_binary(self):
        self.need_start()
        if self.options.cpu:
            return
        if not self.facts.get("gpu"):
            raise NotRun("no GPU found")
        if "cuda" not in self.facts["features"]:
            raise NotRun("the binary is built without the feature cuda")

    def need_python(self):
        lacking = self.facts.get("lacking", ["a Python that answers"])
        if lacking:
            raise NotRun(f"{self.options.python} lacks {', '.join(lacking)}")

    # ---- models and data

    def tokens(self, limit):
        """Random texts, and their tokens by the binary itself."""
        self.need_start()
        draw, words = random.Random(7), []
        for _ in range(3000):
            words.append("".join(draw.choice("abcdefghijklmnoprstuvw") for _ in range(draw.randint(2, 9))))
        texts = self.work / "texts"
        texts.mkdir()
        lines = 200 if self.options.cpu else 3000
        for part in range(4):
            with open(texts / f"{part}.jsonl", "w") as file:
                for _ in range(lines):
                    text = " ".join(draw.choice(words) for _ in range(120))
                    file.write(json.dumps({"text": text}) + "\n")
        self.bam("tokenize", texts, "--tokenizer", "train:500", "--out", self.work / "tokens", "--quiet", limit=limit)
        return {"status": "passed"}

    def dense(self, name, config, limit):
        """A model with random weights, made by the binary itself."""
        self.need_start()
        if name != "tiny" and not self.facts.get("gpu"):
            raise NotRun("no GPU found")
        folder = self.work / f"config-{name}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        for file in ("tokenizer.json", "tokenizer_config.json"):
            if (self.work / "tokens" / file).exists():
                shutil.copy(self.work / "tokens" / file, folder)
        dtype = "f32" if name == "tiny" else "bf16"
        self.bam("init", folder, "--out", self.work / name, "--dtype", dtype, "--quiet", limit=limit)
        self.facts["models"].add(name)
        return {"status": "passed"}

    def mixture(self, seed, limit):
        """A BAM of a model and three branches."""
        self.need_model(seed)
        until, branches = time.monotonic() + limit, self.work / f"branches-{seed}"
        self.bam("branch", self.work / seed, "--into", "a,b,c", "--out", branches, "--link", "--quiet", limit=limit)
        experts = [word for name in "abc" for word in ("--expert", f"{name}={branches / name}")]
        words = ["upcycle", "--method", "bam", "--seed", self.work / seed, *experts, "--out", self.work / f"bam-{seed}"]
        self.bam(*words, "--quiet", limit=until - time.monotonic())
        self.facts["models"].add(f"bam-{seed}")
        return {"status": "passed"}

    def make(self, seed, config, limit, mixed=True):
        """The stages that make a model, and a BAM of it."""
        self.stage(f"model {seed}", lambda limit: self.dense(seed, config, limit), limit)
        if mixed:
            self.stage(f"model bam-{seed}", lambda limit: self.mixture(seed, limit), limit)

    def need_start(self):
        if "features" not in self.facts:
            raise NotRun("the binary does not start")

    def need_model(self, name):
        if name not in self.facts["models"]:
            raise NotRun(f"the model {name} was not made")

    # ---- correctness

    def logits(self, name, limit):
        self.need_binary()
        self.need_model(name)
        dumps, tokens, until = {}, self.work / "ids.json", time.monotonic() + limit
        tokens.write_text(json.dumps([(7 * i) % 400 for i in range(96)]))
        for device in ("cpu", self.device):
            dumps[device] = self.work / f"logits-{name}-{device.replace(':', '-')}.safetensors"
            words = ["logits", self.work / name, "--tokens", tokens, "--dump", dumps[device], "--device", device]
            if not dumps[device].exists():
                self.bam(*words, "--quiet", limit=until - time.monotonic())
        rest = until - time.monotonic()
        said, _ = self.bam("logits", dumps["cpu"], dumps[self.device], "--json", limit=rest)
        compared = json.loads(said)
        finite("differences", [compared["max"]])
        return {**judged(compared["max"], LOGITS_BOUND), "comparison": compared}

    def train(self, name, dtype, device, out, limit, *flags):
        words = [
            "train", self.work / name, "--data", f"texts={self.work / 'tokens'}", "--out", out, "--device", device,
            "--dtype", dtype, "--validate-every", 0, "--quiet", *flags,
        ]  # fmt: skip
        self.bam(*words, limit=limit)
        log = read_records(out, "step")
        for key in ("loss", "gradient_norm"):
            finite(f"{key} on {device}", [step[key] for step in log])
        return log

    def steps(self, name, dtype, limit):
        """50 steps on the device and on the CPU: the losses must stay together."""
        self.need_binary()
        self.need_model(name)
        logs, until = {}, time.monotonic() + limit
        for device in dict.fromkeys(["cpu", self.device]):
            out = self.work / f"run-{name}-{dtype}-{device.replace(':', '-')}"
            logs[device] = self.train(name, dtype, device, out, until - time.monotonic(), *COMPARED)
        pairs = list(zip(logs["cpu"], logs[self.device]))
        far = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
        norms = max(abs(a["gradient_norm"] / b["gradient_norm"] - 1) for a, b in pairs if b["gradient_norm"])
        losses = {device: [log[0]["loss"], log[-1]["loss"]] for device, log in logs.items()}
        result = judged(far, LOSS_BOUNDS[dtype])
        if {len(log) for log in logs.values()} != {50} or losses["cpu"][1] >= losses["cpu"][0]:
            result = {"status": "failed", "reason": f"{len(pairs)} steps, first and last losses {losses['cpu']}"}
        return {**result, "largest_loss_difference": far, "largest_norm_ratio_minus_1": norms, "losses": losses}

    def resume(self, name, dtype, limit):
        """A run that resumes after step 25 must take the steps of the run that went through."""
        self.need_binary()
        whole = self.work / f"run-{name}-{dtype}-{self.device.replace(':', '-')}"
        if not whole.exists():
            raise NotRun("the run to resume is missing")
        again = self.work / f"resumed-{name}-{dtype}"
        shutil.copytree(f"{whole}.run", f"{again}.run")
        shutil.rmtree(f"{again}.run/checkpoints/step-00000050", ignore_errors=True)
        log = self.train(name, dtype, self.device, again, limit, *COMPARED, "--resume")
        pairs = list(zip(read_records(whole, "step"), log))
        far = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
        same = all((again / file.name).read_bytes() == file.read_bytes() for file in whole.glob("*.safetensors"))
        # On the CPU the bytes are the same; on a GPU that is what we want to know.
        result, points = judged(far, LOSS_BOUNDS[dtype]), [record["step"] for record in read_records(again, "resume")]
        if points != [25] or len(log) != 50:
            result = {"status": "failed", "reason": f"resumed after {points}, and logged {len(log)} steps"}
        elif self.device == "cpu" and not same:
            result = {"status": "failed", "reason": "the bytes of the weights differ"}
        return {**result, "largest_loss_difference": far, "same_bytes": same, "steps": len(pairs)}

    # ---- speed

    def load(self):
        """Batch, rows and steps of the measurements."""
        return (2, 64, 6) if self.options.cpu else (8, 1024, 12)

    def speed_of_log(self, log, end):
        batch, seq, _ = self.load()
        # The first steps allocate, and compile.
        seconds = [step["seconds"] for step in log[len(log) // 2 :]]
        memory = [step["memory_bytes"] for step in log if step.get("memory_bytes")] or [end.get("peak_memory_bytes")]
        return {
            "status": "measured", "steps": len(log), "tokens_per_second": round(batch * seq / statistics.median(seconds)),
            "peak_share": log[-1].get("peak_share"), "memory_bytes": max(memory) if all(memory) else "unknown",
        }  # fmt: skip

    def ours(self, name, engine, limit):
        if engine == "torch":
            self.need_python()
            self.need_start()
        else:
            self.need_binary()
        self.need_model(name)
        batch, seq, steps = self.load()
        flags = ["--steps", steps, "--batch", batch, "--seq", seq, "--save-every", 0, "--detail-every", 0]
        if engine == "torch":
            flags += ["--engine", "torch", "--python", self.options.python, "--nproc-per-node", 1]
        out = self.work / f"speed-{name}-{engine}"
        log = self.train(name, "bf16", self.device, out, limit, *flags)
        shutil.rmtree(out, ignore_errors=True)
        return self.speed_of_log(log, read_records(out, "end")[-1])

    def plain(self, name, compiled, limit):
        self.need_python()
        self.need_model(name)
        batch, seq, steps = self.load()
        words = [self.options.python, HERE / "gpu_check_torch.py", self.work / name, self.device, batch, seq, steps]
        said, _ = self.command([*words, "compiled" if compiled else "eager"], limit)
        found = json.loads(said.strip().splitlines()[-1])
        finite("losses", found["losses"])
        return {"status": "measured", **found}

    def run(self):
        tiny = ["tiny", "bam-tiny"]
        self.stage("machine", self.machine, 25)
        self.stage("binary", self.binary, 20)
        self.stage("python", self.python, 60)
        self.stage("tokens", self.tokens, 60)
        self.make("tiny", TINY, 30)
        for name in tiny:
            self.stage(f"logits {name}", lambda limit, name=name: self.logits(name, limit), 30, compares=True)
        for name in tiny:
            for dtype in ("f32", "bf16"):
                work = lambda limit, n=name, d=dtype: self.steps(n, d, limit)  # noqa: E731
                self.stage(f"50 steps {name} {dtype}", work, 60, compares=True)
                work = lambda limit, n=name, d=dtype: self.resume(n, d, limit)  # noqa: E731
                self.stage(f"resume {name} {dtype}", work, 40, compares=True)
        if not self.options.cpu:
            # Only the measurements need these: they come after all comparisons.
            self.make("135M", SMALL, 40)
            self.make("0.6B", MEDIUM, 60, mixed=False)
        sizes = tiny if self.options.cpu else ["135M", "bam-135M", "0.6B"]
        for engine in ("native", "torch"):
            for name in sizes:
                self.stage(f"speed {name} {engine}", lambda limit, n=name, e=engine: self.ours(n, e, limit), 60)
        for compiled in (False, True):
            # The compiler takes minutes on a CPU.
            for name in sizes[:1] if compiled and self.options.cpu else sizes:
                way = "compiled" if compiled else "eager"
                work = lambda limit, n=name, c=compiled: self.plain(n, c, limit)  # noqa: E731
                self.stage(f"speed {name} transformers {way}", work, 75)


def end(process):
    """Ends a command and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(3)


def leave(number, _):
    """Leaves at a signal, after commands have ended and the temporary folder is gone. A second signal changes nothing."""
    for name in ENDS:
        signal.signal(name, signal.SIG_IGN)
    sys.exit(128 + number)


def card(rows, number, visible):
    """The name of the GPU with a number, of those that `CUDA_VISIBLE_DEVICES` leaves; `None` without one."""
    if visible is None:
        wanted = str(number)
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        if number >= len(names):
            return None
        wanted = names[number]
    for row in rows:
        if row["index"] == wanted or (wanted.startswith("GPU-") and row["uuid"].startswith(wanted)):
            return row["name"]
    # A part of a GPU has a name that is in no row.
    return wanted if wanted.startswith("MIG-") else None


def finite(what, values):
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in values):
        raise Failed(f"{what}: {values}, expected finite numbers")


def exit_code(report):
    if {"failed", "timed out"} & set(report["counts"]):
        return 1
    passed = [stage["status"] == "passed" for stage in report["stages"] if stage["compares"]]
    return 0 if passed and all(passed) else 3


def judged(found, bound):
    if found <= bound:
        return {"status": "passed", "bound": bound}
    return {"status": "failed", "reason": f"a difference of {found:.3g}, expected at most {bound:g}", "bound": bound}


def name_of(words):
    words = [str(word) for word in words]
    return " ".join([Path(words[0]).name, *words[1:3]]).splitlines()[0]


def read_records(out, kind):
    """The records of one kind in the log of a run."""
    with open(f"{out}.run/metrics.jsonl") as file:
        records = [json.loads(line) for line in file]
    return [record for record in records if record["kind"] == kind]


def main():
    parser = argparse.ArgumentParser(description="Checks a binary of bam-convert on a GPU, in at most seven minutes.")
    parser.add_argument("--binary", type=Path, required=True, help="the binary to check")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="the JSON file to write")
    parser.add_argument("--python", default=sys.executable, help="the Python that has torch and transformers")
    parser.add_argument("--device", default="cuda:0", help="the GPU, as --device names it")
    parser.add_argument("--cpu", action="store_true", help="everything tiny, on the CPU: shows that this script works")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the most seconds of all stages together")
    options = parser.parse_args()
    if not re.fullmatch(r"cuda(:\d+)?", options.device):
        parser.error(f"--device {options.device}: expected cuda or cuda:N")
    for number in ENDS:
        signal.signal(number, leave)
    options.binary, options.out = options.binary.resolve(), options.out.resolve()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        check = Check(options, Path(work))
        check.run()
    print(json.dumps(check.report["counts"]), file=sys.stderr)
    sys.exit(exit_code(check.report))


if __name__ == "__main__":
    main()
