"""Weights and optimiser state in safetensors files, tensor by tensor. No rank holds the whole model.

The files are read and written here as the format describes them: a length, a header of JSON, and plain numbers.
"""

import glob
import heapq
import json
import math
import os
from pathlib import Path

import numpy
import torch
import torch.distributed as dist

from .events import OTHER_RANK, Failure

# Parts of a parameter's state: float32 master weights and both moments.
PARTS = ("master", "first", "second")


# What the formats call dtypes.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_rows(path, dtype, shape, ranges, start, end):
    """Rows `start..end` of a tensor in float32. `ranges` (offset, length) say where its bytes are in the file."""
    dtype = DTYPES[dtype]
    width = dtype.itemsize * math.prod(shape[1:])
    wanted, position, pieces = (start * width, end * width), 0, []
    bytes_of = numpy.memmap(path, dtype=numpy.uint8, mode="r")
    for offset, length in ranges:
        low, high = max(wanted[0] - position, 0), min(wanted[1] - position, length)
        if low < high:
            pieces.append(bytes_of[offset + low : offset + high])
        position += length
    found = torch.from_numpy(numpy.concatenate(pieces)).view(dtype)
    return found.view(end - start, *shape[1:]).to(torch.float32)


def load_weights(plan, shards):
    """Fills every parameter from the checkpoint that training begins with."""
    for shard in shards:
        source, (start, end) = shard.entry["source"], shard.rows
        if start < end:
            path = plan["files"][source["file"]]
            rows = read_rows(path, source["dtype"], shard.entry["shape"], source["ranges"], start, end)
            shard.local.copy_(rows)


def header_of(path):
    """The tensors of a safetensors file by name, and where their bytes begin."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > os.path.getsize(path):
            raise Failure("state", f"{path}: is no safetensors file")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries, 8 + length


def load_state(folder, shards):
    """Fills what trains from the state of a checkpoint, which any number of ranks has written."""
    places = {}
    for path in sorted(glob.glob(os.path.join(glob.escape(folder), "training-state*.safetensors"))):
        entries, begin = header_of(path)
        places |= {name: (path, begin, entry) for name, entry in entries.items()}
    for shard in shards:
        start, end = shard.rows
        for part, target in zip(PARTS, (shard.local, shard.first, shard.second)):
            name = f"{part}.{shard.name}"
            if name not in places:
                raise Failure("state", f"{folder}: no file of the state has the tensor `{name}`")
            path, begin, entry = places[name]
            found, expected = (entry["dtype"], entry["shape"]), ("F32", shard.entry["shape"])
            if found != expected:
                raise Failure("state", f"{path}: tensor `{name}` is {found}, expected {expected}")
            if target is not None and start < end:
                first, last = entry["data_offsets"]
                target.copy_(read_rows(path, "F32", entry["shape"], [(begin + first, last - first)], start, end))


class StateWriter:
    """Writes the state of what trains: each rank the whole tensors that it owns."""

    def __init__(self, scratch, shards, rank, ranks):
        self.scratch, self.shards, self.rank, self.ranks = Path(scratch), shards, rank, ranks
        # The largest first, each to the rank that has least.
        loads, self.owner = [(0, rank) for rank in range(ranks)], {}
        for shard in sorted(shards, key=lambda shard: (-shard.elements, shard.name)):
            load, rank = heapq.heappop(loads)
            self.owner[shard.name] = rank
            heapq.heappush(loads, (load + shard.elements, rank))
        self.files = [f"training-state-{rank + 1:05}-of-{ranks:05}.safetensors" for rank in range(ranks)]

    def write(self):
        """Returns the names of all files, once every rank has written and synced its own."""
        part = self.scratch / f"{self.files[self.rank]}.part"
        problem = None
        try:
            file = open(part, "wb")
            file.write(self.header())
        except OSError as error:
            problem = error
        for shard in self.shards:
            # A rank whose disk is full still takes part, or the others would wait for it.
            whole = gathered(shard, self.owner[shard.name], self.rank, self.ranks)
            if whole is None or problem is not None:
                continue
            try:
                for tensor in whole:
                    file.write(memoryview(tensor.contiguous().numpy()).cast("B"))
            except OSError as error:
                problem = error
        if problem is None:
            try:
                file.flush()
                os.fsync(file.fileno())
                file.close()
                os.rename(part, self.scratch / self.files[self.rank])
            except OSError as error:
                problem = error
        failed = torch.tensor(int(problem is not None), device=self.shards[0].local.device)
        dist.all_reduce(failed)
        if problem is not None:
            part.unlink(missing_ok=True)
            raise Failure("disk", f"{part}: {problem.strerror or problem}", path=str(part), errno=problem.errno)
        if failed.item():
            raise Failure(OTHER_RANK, "another rank could not write the state")
        return self.files

    def header(self):
        """The beginning of this rank's file."""
        entries, offset = {}, 0
        for shard in self.shards:
            if self.owner[shard.name] == self.rank:
                for part in PARTS:
                    end = offset + 4 * shard.elements
                    entries[f"{part}.{shard.name}"] = {
                        "dtype": "F32", "shape": shard.entry["shape"], "data_offsets": [offset, end],
                    }  # fmt: skip
                    offset = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


@torch.no_grad()
def gathered(shard, owner, rank, ranks):
    """Master weights and moments of a parameter on the CPU, on the rank that owns it; None on others."""
    if shard.is_whole:
        return [tensor.detach().cpu() for tensor in shard.parts()] if rank == owner else None
    count, trailing = shard.entry["shape"][0], shard.entry["shape"][1:]
    most = -(-count // ranks)
    start, end = shard.rows
    whole = []
    # One part at a time, joined on the CPU: a card holds a parameter once more, and not six times.
    for tensor in shard.parts():
        own = torch.zeros((most, *trailing), device=shard.local.device)
        own[: end - start] = tensor
        into = [torch.empty_like(own) for _ in range(ranks)] if rank == owner else None
        dist.gather(own, into, dst=owner)
        if rank == owner:
            whole.append(torch.cat([part.cpu() for part in into])[:count])
    return whole if rank == owner else None
