"""The engine of `bam-convert train --engine torch`: trains on one or more ranks with FSDP2.

bam-convert starts it with `python -m torch.distributed.run … train_bam.py PLAN`. It needs Python 3.10, torch 2.6, and
transformers 4.57 or newer. `docs/design/torch-engine.md` describes the plan and the events. Nothing that it reads runs as
code: weights are safetensors, everything else is JSON or plain numbers.
"""

import argparse
import contextlib
import datetime
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
import traceback
from pathlib import Path

# The files beside this one are a package, as modeling_bam.py imports its configuration relatively.
PACKAGE = "bam_engine"
spec = importlib.machinery.ModuleSpec(PACKAGE, None, is_package=True)
spec.submodule_search_locations = [str(Path(__file__).resolve().parent)]
sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)

from bam_engine.events import OTHER_RANK, Failure, emit  # noqa: E402

# Versions that hold all we use, and the command that installs them.
NEEDED = {"torch": (2, 6), "transformers": (4, 57), "numpy": (1, 24)}
INSTALL = [sys.executable, "-m", "pip", "install", "torch>=2.6", "transformers>=4.57", "numpy>=1.24"]

# The rate of dense matmuls in bfloat16, in FLOP/s, by what the name of a card holds.
PEAKS = {
    "B200": 2250e12, "B100": 1750e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "GH200": 989e12, "H800": 989e12, "H20": 148e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L4": 121e12,
    "A40": 150e12, "A10": 125e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
}  # fmt: skip

# A state may take long to write, and the other ranks wait for it.
PATIENCE = datetime.timedelta(hours=2)


def check_packages():
    """The versions of what is needed; refuses a package that is missing or too old."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    if sys.version_info < (3, 10):
        raise Failure("python-old", f"Python is {sys.version.split()[0]}, expected 3.10 or newer")
    for name, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            text = f"{sys.executable} has no package {name}, expected {wanted} or newer"
            raise Failure(f"{name}-missing", text, install=INSTALL) from None
        numbers = tuple(int(part) for part in found[name].split("+")[0].split(".")[:2] if part.isdigit())
        if numbers < least:
            text = f"{sys.executable} has {name} {found[name]}, expected {wanted} or newer"
            raise Failure(f"{name}-old", text, install=INSTALL)
    return found


def probe():
    """Says what this Python can train with."""
    versions = check_packages()
    import torch
    import torch.distributed as dist

    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    if not dist.is_available():
        raise Failure("torch-missing", f"torch {versions['torch']} is built without torch.distributed", install=INSTALL)
    emit(
        "probe", python=sys.version.split()[0], nccl=dist.is_nccl_available(), cuda=[card.name for card in cards],
        cuda_memory=[card.total_memory for card in cards], **versions,
    )  # fmt: skip


def matmul_peak(torch, device, dtype):
    """The rate of a large matmul, in FLOP/s: by the name of the card where it is known, otherwise measured."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        known = [peak for part, peak in PEAKS.items() if part in name]
        if known:
            return known[0]
    size = 8192 if device.type == "cuda" else 512
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        # Copying a number waits for the device.
        (matrix @ matrix)[0, 0].item()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


def train(plan):
    """The run of one rank."""
    versions = check_packages()
    # Sums on a GPU have a fixed order only on request, and experts take tensors of many sizes.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from bam_engine import model as models
    from bam_engine import state
    from bam_engine.optimiser import AdamW, Shard
    from bam_engine.trainer import Trainer

    device = torch.device("cpu")
    if device.type == plan["device"] and not hasattr(torch.cpu.Stream, "record_event"):
        text = f"torch {torch.__version__} cannot shard weights on the CPU, expected a newer torch, for example 2.15"
        raise Failure("torch-old", text, install=[*INSTALL, "--upgrade"])
    if plan["device"] == "cuda":
        local = int(os.environ["LOCAL_RANK"]) if plan["gpu"] is None else plan["gpu"]
        cards = torch.cuda.device_count()
        if local >= cards:
            raise Failure("device", f"this machine has no card {local}: torch {torch.__version__} sees {cards}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if device.type == "cuda":
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    rank, ranks, settings = dist.get_rank(), dist.get_world_size(), plan["settings"]
    if settings["batch"] < ranks:
        text = f"--batch is {settings['batch']}, expected at least the number of ranks, {ranks}"
        raise Failure("settings", text)

    mesh = init_device_mesh(device.type, (ranks,))
    model = models.build(plan, device, mesh)
    held = dict(model.causal_lm.named_parameters()) | dict(model.causal_lm.named_buffers())
    shards = [Shard(entry, held[entry["module"]], rank, ranks) for entry in plan["parameters"]]
    state.load_weights(plan, shards)
    trained = [shard for shard in shards if shard.entry["trained"]]
    if plan["resume"]:
        state.load_state(plan["resume"]["folder"], trained)
    biases = {id(shard.tensor): shard.local for shard in trained if shard.is_whole}
    biases = [biases.get(id(mixture.router.bias)) for _, mixture in model.mixtures()]
    optimiser = AdamW(settings, shards, device)
    writer = state.StateWriter(plan["scratch"], trained, rank, ranks)
    trainer = Trainer(plan, model, optimiser, biases, writer, device)

    dtype = torch.bfloat16 if settings["dtype"] == "bf16" else torch.float32
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    if rank == 0:
        emit(
            "ready", ranks=ranks, device_names=[name], matmul_peak=matmul_peak(torch, device, dtype), attention="sdpa",
            compiled=plan["operation"]["compile"], notes=[], **versions,
        )  # fmt: skip
    dist.barrier()
    trainer.run()
    dist.barrier()
    dist.destroy_process_group()


def describe(error):
    """An exception as the kind and the text of a failure."""
    if isinstance(error, Failure):
        return error.kind, str(error), error.more
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        peak = torch.cuda.max_memory_allocated()
        return "memory", f"the card ran out of memory: {str(error).splitlines()[0]}", {"peak": peak}
    text = str(error).splitlines()[0] if str(error) else ""
    # torch has no class for it: gloo raises RuntimeError, NCCL a subclass.
    if isinstance(error, RuntimeError) and any(word in text for word in ("gloo", "NCCL", "Connection closed")):
        return "rank-lost", f"another rank ended: {text}", {}
    return "error", f"{type(error).__name__}: {text}", {}


def report(error):
    """Sends the failure, unless another rank does."""
    kind, message, more = describe(error)
    if kind != OTHER_RANK:
        emit("failed", kind=kind, message=message, **more)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", nargs="?", help="the plan that bam-convert wrote")
    parser.add_argument("--probe", action="store_true", help="say what this Python can train with")
    arguments = parser.parse_args()
    try:
        if arguments.probe:
            return probe()
        train(json.loads(Path(arguments.plan).read_text(encoding="utf-8")))
        return
    except Exception as error:
        # Where nobody listens, or the disk of the log is full, this rank still ends.
        with contextlib.suppress(OSError):
            report(error)
        with contextlib.suppress(OSError):
            traceback.print_exc()
            sys.stderr.flush()
    # Other ranks wait in collectives, which leaving as usual would wait for, too.
    os._exit(1)


if __name__ == "__main__":
    main()
