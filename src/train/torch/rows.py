"""Rows of tokens, in the order that the seed fixes.

`docs/reference/token-folder.md` describes the files and the order; `src/data/` is the same in Rust. Row number n is a
function of the seed and n alone, so any rank finds its rows without the others.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy

MASK = (1 << 64) - 1
# Longest block in which shares are exact, shortest block otherwise, and parts of the whole.
EXACT_BLOCK, OTHER_BLOCK, PARTS = 1000, 64, 1 << 32


def mix(x):
    """The finaliser of SplitMix64."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


class Permutation:
    """A permutation of `0..count`, fixed by a seed, a name and a number; any element is found alone."""

    def __init__(self, count, seed, name, number):
        self.count = count
        self.half_bits = max(((count - 1).bit_length() + 1) // 2, 1)
        start = b"bam-convert order v1\0" + seed.to_bytes(8, "little") + number.to_bytes(8, "little")
        hashes = b"".join(hashlib.sha256(start + bytes([half]) + name.encode()).digest() for half in (0, 1))
        self.keys = [int.from_bytes(hashes[at : at + 8], "little") for at in range(0, 64, 8)]

    def at(self, index):
        value, mask = index, (1 << self.half_bits) - 1
        while True:
            left, right = value >> self.half_bits, value & mask
            for key in self.keys:
                left, right = right, left ^ mix(right ^ key) & mask
            value = left << self.half_bits | right
            if value < self.count:
                return value


class TokenFolder:
    """The ids of a folder's splits in mapped memory."""

    def __init__(self, path):
        header = json.loads((Path(path) / "header.json").read_text(encoding="utf-8"))
        width = numpy.dtype("<u2" if header["dtype"] == "u16" else "<u4")
        self.shards, self.tokens = {}, {}
        self.has_masks = header["format_version"] == 2
        for split in ("train", "validation"):
            self.shards[split], first = [], 0
            for shard in header["splits"].get(split, []):
                file = Path(path) / shard["file"]
                ids, ends = mapped(file, width), mapped(file.with_suffix(".ends"), "<u8")
                mask = mapped(file.with_suffix(".mask"), "u1") if "mask" in shard else None
                self.shards[split].append((first, ids, ends, mask))
                first += shard["tokens"]
            self.tokens[split] = first

    def ids(self, split, start, end):
        """The ids at `start..end` of a split, int64."""
        pieces = [ids[max(start - first, 0) : end - first] for first, ids, *_ in self.shards[split] if first < end]
        return numpy.concatenate(pieces).astype(numpy.int64)

    def scored(self, split, start, end):
        """For each token at `start..end` whether it carries loss, bool."""
        pieces = []
        for first, ids, _, mask in self.shards[split]:
            if first < end:
                part = slice(max(start - first, 0), end - first)
                pieces.append(numpy.ones(len(ids[part]), dtype=bool) if mask is None else mask[part] == 1)
        return numpy.concatenate(pieces)

    def documents(self, split, start, end):
        """For each token at `start..end` the number of its document among these, from 0, int32."""
        found = numpy.zeros(end - start, dtype=numpy.int32)
        for first, _, ends, _ in self.shards[split]:
            low, high = numpy.searchsorted(ends, [max(start - first, 0), max(end - first, 0)], side="right")
            for position in ends[low:high]:
                found[int(position) + first - start :] += 1
        return found


def mapped(path, dtype):
    """A file of numbers; an empty one cannot be mapped."""
    if path.stat().st_size == 0:
        return numpy.zeros(0, dtype=dtype)
    return numpy.memmap(path, dtype=dtype, mode="r")


@dataclass
class Place:
    """Where a row is: the number of its domain, and its first token in the domain's split."""

    domain: int
    start: int


class Mixture:
    """Domains `(name, folder, weight)` in rows of `seq` predicted tokens."""

    def __init__(self, domains, seed, seq, split):
        self.names = [name for name, _, _ in domains]
        self.folders = [folder for _, folder, _ in domains]
        self.seed, self.seq, self.split = seed, seq, split
        predicted = [folder.tokens[split] - 1 for folder in self.folders]
        self.rows_in_epoch = [tokens // seq for tokens in predicted]
        self.left = [tokens % seq for tokens in predicted]
        self.block_length, self.cumulative, self.whole = shares([weight for _, _, weight in domains])
        self.block = None

    def places(self, first, count):
        """The places of rows number `first..first + count`."""
        found = []
        for number in range(first, first + count):
            index, within = divmod(number, self.block_length)
            if self.block is None or self.block[0] != index:
                self.block = index, self.block_rows(index)
            domain, position = self.block[1][within]
            found.append(Place(domain, self.start(domain, position)))
        return found

    def block_rows(self, index):
        """The rows of block number `index`: their domain, and their number within it."""
        start, end = index * self.block_length, (index + 1) * self.block_length
        ordered, following = [], []
        for domain, parts in enumerate(self.cumulative):
            before = self.cumulative[domain - 1] if domain else 0

            def rows(upto, parts=parts, before=before):
                return parts * upto // self.whole - before * upto // self.whole

            following.append(rows(start))
            ordered += [domain] * (rows(end) - rows(start))
        shuffle = Permutation(self.block_length, self.seed, "block", index)
        found = []
        for place in range(self.block_length):
            domain = ordered[shuffle.at(place)]
            found.append((domain, following[domain]))
            following[domain] += 1
        return found

    def start(self, domain, position):
        """The first token of row number `position` of a domain."""
        name, rows = self.names[domain], self.rows_in_epoch[domain]
        epoch, within = divmod(position, rows)
        window = Permutation(rows, self.seed, f"rows {name}", epoch).at(within)
        offset = 0
        if self.split == "train":
            offset = Permutation(self.left[domain] + 1, self.seed, f"offset {name}", epoch).at(0)
        return offset + window * self.seq

    def ids(self, place):
        """The `seq + 1` ids of a row."""
        return self.folders[place.domain].ids(self.split, place.start, place.start + self.seq + 1)

    def documents(self, place):
        """The documents of a row's tokens."""
        return self.folders[place.domain].documents(self.split, place.start, place.start + self.seq + 1)

    def scored(self, place):
        """Which of a row's tokens carry loss."""
        return self.folders[place.domain].scored(self.split, place.start, place.start + self.seq + 1)


def added(values):
    """The sum, rounded after each term: `sum` keeps a correction from Python 3.12 on, and Rust does not."""
    total = 0.0
    for value in values:
        total += value
    return total


def half_up(x):
    """The nearest whole number of a number that is not negative; a half rounds up."""
    whole = math.floor(x)
    return whole + (x - whole >= 0.5)


def shares(weights):
    """Rows of a block, the share of the domains up to each one in parts of the whole, and the parts of the whole."""
    total = added(weights)
    each = [weight / total for weight in weights]

    def is_exact(rows):
        parts = [share * rows for share in each]
        return all(part > 0.5 and abs(part - half_up(part)) < 1e-9 * rows for part in parts)

    def cumulative(parts):
        upto, reached = [], 0.0
        for share in each:
            reached += share
            upto.append(min(half_up(reached * parts), parts))
        return upto[:-1] + [parts]

    for rows in range(1, EXACT_BLOCK + 1):
        if is_exact(rows):
            return rows, cumulative(rows), rows
    block = max(math.ceil(1.0 / min(each)) + 2, OTHER_BLOCK)
    return block, cumulative(PARTS), PARTS


@dataclass
class Batch:
    """A rank's rows of one batch, on the CPU. Shapes: n rows of this rank, s positions."""

    ids: numpy.ndarray  # [n, s] int64
    targets: numpy.ndarray  # [n, s] int64
    predicted: numpy.ndarray  # [n, s] bool: positions whose next token is predicted and carries loss
    documents: object  # [n, s] int32, or None where rows are one text
    of_domain: numpy.ndarray  # [domains, n] float64: 1 where a row is of a domain


@dataclass
class StepRows:
    """A rank's part of the rows of a step, and what it must know of the whole."""

    batches: list
    tokens: int  # predicted by all ranks
    domain_tokens: list  # predicted by all ranks, by domain


class RowReader:
    """Reads a rank's slice of each batch.

    A batch is cut by rows, as evenly as possible, so that each rank has at least one row of a batch of `ranks` rows.
    """

    def __init__(self, mixture, separate, rank, ranks):
        self.mixture, self.separate, self.rank, self.ranks = mixture, separate, rank, ranks

    def step(self, first, batch, accumulate):
        """The rows from number `first` on, for `accumulate` batches of `batch` rows."""
        places = self.mixture.places(first, batch * accumulate)
        domain_tokens = [0] * len(self.mixture.names)
        batches = []
        for start in range(0, len(places), batch):
            part = places[start : start + batch]
            low, high = self.rank * len(part) // self.ranks, (self.rank + 1) * len(part) // self.ranks
            documents = [self.mixture.documents(place) for place in part] if self.separate else None
            for number, place in enumerate(part):
                predicted = self.predicted(place, documents[number] if self.separate else None)
                domain_tokens[place.domain] += int(predicted.sum())
            batches.append(self.batch(part[low:high], documents[low:high] if self.separate else None))
        return StepRows(batches, sum(domain_tokens), domain_tokens)

    def predicted(self, place, documents):
        """The positions of a row whose next token is predicted and carries loss, bool."""
        scored = self.mixture.scored(place)[1:]
        return scored if documents is None else scored & (documents[:-1] == documents[1:])

    def batch(self, places, documents=None):
        """These rows as a batch."""
        rows = numpy.stack([self.mixture.ids(place) for place in places])
        of_rows = [None] * len(places)
        if self.separate:
            of_rows = documents or [self.mixture.documents(place) for place in places]
            documents = numpy.stack(of_rows)[:, :-1]
        predicted = numpy.stack([self.predicted(*row) for row in zip(places, of_rows)])
        of_domain = numpy.eye(len(self.mixture.names))[:, [place.domain for place in places]]
        return Batch(rows[:, :-1], rows[:, 1:], predicted, documents, of_domain)
