"""The steps of a run: each is taken, reported, measured and saved when due; `src/train/session.rs` is the same in Rust."""

import math
import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.distributed as dist

from . import schedule
from .events import OTHER_RANK, Failure, check_reader, emit
from .losses import Recorder, RouterLosses
from .rows import Mixture, RowReader, TokenFolder

# Norms that the running mean holds before one can be a spike, and how much of the mean stays at each step.
CALM, MEMORY = 20, 0.95


class Counters:
    """The progress of a run."""

    def __init__(self, resumed):
        resumed = resumed or {}
        self.step, self.updates = resumed.get("step", 0), resumed.get("updates", 0)
        self.tokens, self.norms = resumed.get("tokens", 0), resumed.get("norms", 0)
        self.norm_mean = resumed.get("norm_mean", 0.0)

    def take(self, step, rows):
        """Counts a step, with an update or without."""
        self.step = step
        self.tokens += rows.tokens

    def add_norm(self, norm):
        self.norms += 1
        # The mean of the first few, then one that forgets.
        self.norm_mean += (norm - self.norm_mean) * max(1.0 / self.norms, 1.0 - MEMORY)


class HeldBack:
    """The rows of one domain to measure on: the same at every measurement."""

    def __init__(self, name, folder, settings, most):
        self.name = name
        self.mixture = Mixture([(name, folder, 1.0)], settings["rng-seed"], settings["seq"], "validation")
        self.places = self.mixture.places(0, min(most, self.mixture.rows_in_epoch[0]))
        reader = RowReader(self.mixture, settings["documents"] == "separate", 0, 1)
        self.is_scored = any(reader.batch([place]).predicted.any() for place in self.places)


class Trainer:
    """A model with what its training needs, on one of `ranks` ranks."""

    def __init__(self, plan, model, optimiser, biases, writer, device):
        self.plan, self.settings, self.operation = plan, plan["settings"], plan["operation"]
        self.model, self.optimiser, self.writer, self.device = model, optimiser, writer, device
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.counters = Counters(plan["resume"])
        self.saved = self.counters.step if plan["resume"] else None
        self.measured = self.counters.step if (plan["resume"] or {}).get("validated") else None

        # By layer: the choice bias of each router, which the optimiser's shards hold whole.
        self.mixtures = [mixture for _, mixture in model.mixtures()]
        self.biases = biases
        choice = [mixture.router.choice_bias for mixture in self.mixtures]
        config = model.causal_lm.config
        self.router_losses = RouterLosses(self.settings, config, choice if choice and choice[0] is not None else None)
        self.recorder = Recorder(model.routers())

        separate = self.settings["documents"] == "separate"
        folders = [(data["name"], TokenFolder(data["path"]), data["weight"]) for data in plan["data"]]
        self.mixture = Mixture(folders, self.settings["rng-seed"], self.settings["seq"], "train")
        self.reader = RowReader(self.mixture, separate, self.rank, self.ranks)
        self.held_back = []
        if self.operation["validate_every"]:
            held_back = [
                HeldBack(name, folder, self.settings, self.operation["validate_rows"])
                for name, folder, _ in folders
                if folder.tokens["validation"] > self.settings["seq"]
            ]
            self.held_back = [domain for domain in held_back if domain.is_scored]
        self.loader = ThreadPoolExecutor(1)
        self.pending = None
        self.wants_stop = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.on_signal)

    def on_signal(self, *_):
        self.wants_stop = True

    def run(self):
        """Takes the steps that are left."""
        stopped = self.agree(self.is_stop_asked())
        while True:
            step = self.counters.step
            if self.is_due(self.operation["validate_every"]) and self.measured != step:
                stopped = self.measure() or stopped
            is_last = step == self.settings["steps"]
            if step > 0 and (self.is_due(self.operation["save_every"]) or stopped or is_last):
                self.save()
            if is_last:
                return self.emit("end", step=step)
            if stopped:
                return self.emit("stopped", step=step)
            stopped = self.step()

    def is_due(self, every):
        """Whether something is due after the present step that happens every so many steps, and at each planned end."""
        step = self.counters.step
        return every > 0 and (step % every == 0 or step in schedule.plans(self.settings))

    def emit(self, event, **fields):
        if self.rank == 0:
            emit(event, **fields)

    # ---- stopping

    def is_stop_asked(self):
        return self.wants_stop or self.rank == 0 and os.path.exists(self.plan["stop"])

    def agree(self, flag):
        """Whether any rank says so."""
        found = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(found)
        return found.item() > 0

    # ---- a step

    def step(self):
        """Takes the next step; returns whether the run is asked to stop."""
        start, settings, step = time.monotonic(), self.settings, self.counters.step + 1
        rows = self.rows(step)
        if rows.tokens == 0 and any(folder.has_masks for folder in self.mixture.folders):
            # Answers can be far between; a run that stopped here would meet the same step again.
            self.counters.take(step, rows)
            self.emit("skip", **self.position(), kind="no-answer")
            return self.agree(self.is_stop_asked())
        if rows.tokens == 0:
            raise Failure("nothing-to-predict", "no token of the step is predicted", step=step)
        every = self.operation["detail_every"]
        detailed = every > 0 and (step % every == 0 or step == 1 or step in schedule.plans(settings))
        if detailed:
            self.recorder.start()
            self.model.run_eagerly(True)
        nlls, losses, counts = self.gradients(rows)
        if detailed:
            self.model.run_eagerly(False)

        # All that ranks and the host wait for, once a step.
        squares = self.optimiser.squares()
        memory = torch.zeros(self.ranks, dtype=torch.float64, device=self.device)
        memory[self.rank] = self.peak_memory()
        stop = torch.full((1,), float(self.is_stop_asked()), dtype=torch.float64, device=self.device)
        parts = [nlls, squares, memory, stop]
        if detailed and self.recorder.routers:
            parts.append(self.recorder.packed())
        packed = torch.cat(parts)
        dist.all_reduce(packed)
        values = torch.cat([packed, losses]).tolist()
        nlls, squares, memory, stop, routing, losses = cut(values, len(nlls), len(squares), self.ranks, 1, -2)

        done = self.done(step, rows, nlls, squares, losses)
        trouble = self.trouble(done)
        if trouble is not None:
            self.optimiser.clear()
            self.on_trouble(trouble, step, rows)
            return stop[0] > 0
        sums = self.update(done, counts, detailed)
        self.counters.take(step, rows)
        self.emit(
            "step", **done, **self.position(), seconds=time.monotonic() - start,
            memory=[int(held) for held in memory],
        )  # fmt: skip
        if detailed:
            self.emit_detail(step, squares, sums, routing)
        return stop[0] > 0

    def peak_memory(self):
        """The largest memory so far, in bytes: of the card, or of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    def rows(self, step):
        """The rows of a step, while a thread reads the next step's."""
        count = self.settings["batch"] * self.settings["accumulate"]

        def read(step):
            return self.reader.step((step - 1) * count, self.settings["batch"], self.settings["accumulate"])

        rows = self.pending.result() if self.pending else read(step)
        self.pending = self.loader.submit(read, step + 1) if step < self.settings["steps"] else None
        return rows

    def to_device(self, array):
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def gradients(self, rows):
        """Adds up the gradients of all batches of a step. Returns sums that stay on the device.

        They are this rank's losses by domain, load balance and z of all ranks, and how many tokens of all ranks chose
        each expert, by layer.
        """
        settings = self.settings
        nlls = torch.zeros(len(self.mixture.names), dtype=torch.float64, device=self.device)
        losses = torch.zeros(2, dtype=torch.float64, device=self.device)
        counts, share = None, 1.0 / len(rows.batches)
        for batch in rows.batches:
            ids, targets, predicted = (self.to_device(part) for part in (batch.ids, batch.targets, batch.predicted))
            documents = None if batch.documents is None else self.to_device(batch.documents)
            weights = predicted.float() * (1.0 / rows.tokens)
            self.recorder.listen(True)
            loss, nll, router_logits = self.model(ids, targets, weights, documents)
            self.recorder.listen(False)
            if router_logits:
                tokens = settings["batch"] * settings["seq"]
                weighted, of_batch, chosen = self.router_losses(router_logits, tokens)
                loss = loss + weighted * share
                losses += of_batch * share
                counts = chosen if counts is None else counts + chosen
            # FSDP divides by the number of ranks, and each rank has its part of one sum.
            (loss * self.ranks).backward()
            of_rows = (nll.view(predicted.shape) * predicted).sum(dim=1, dtype=torch.float64)
            nlls += self.to_device(batch.of_domain) @ of_rows
        return nlls, losses, counts

    def done(self, step, rows, nlls, squares, losses):
        """What the step's record says of losses and gradients."""
        settings, (balance, z) = self.settings, losses
        nll = sum(nlls) / rows.tokens
        share = schedule.share(settings, step)
        domains = {
            name: {"nll": nll / tokens, "tokens": tokens}
            for name, nll, tokens in zip(self.mixture.names, nlls, rows.domain_tokens)
            if tokens
        }
        return {
            "loss": nll + settings["aux-loss-coef"] * balance + settings["z-loss-coef"] * z,
            "nll": nll,
            "load_balance": balance,
            "z": z,
            "gradient_norm": math.sqrt(sum(squares)),
            "learning_rate": settings["learning-rate"] * share,
            "router_learning_rate": settings["router-learning-rate"] * share,
            "domains": domains,
        }

    def update(self, done, counts, detailed):
        """Updates weights and biases; returns the sums of the update where it is detailed."""
        clip, norm = self.settings["clip"], done["gradient_norm"]
        scale = clip / norm if clip > 0.0 and norm > clip else 1.0
        rates = {False: done["learning_rate"], True: done["router_learning_rate"]}
        sums = self.optimiser.update(self.counters.updates + 1, rates, scale, detailed)
        self.optimiser.clear()
        if counts is not None:
            for bias, chosen in zip(self.biases, counts):
                if bias is not None:
                    direction = (chosen.sum() - chosen * len(chosen)).sign()
                    bias.add_((self.settings["bias-balancing"] * direction).to(bias.dtype))
        self.counters.add_norm(norm)
        self.counters.updates += 1
        return sums

    # ---- troubles

    def trouble(self, done):
        """What speaks against the update, with what to do about it."""
        settings, counters, norm = self.settings, self.counters, done["gradient_norm"]
        if not (math.isfinite(done["loss"]) and math.isfinite(norm)):
            what = "the norm of the gradients" if math.isfinite(done["loss"]) else "the loss"
            return settings["on-nan"], {"kind": "nan", "what": what}
        spike, mean = settings["on-spike"], counters.norm_mean
        if spike is None or counters.norms < CALM or norm <= spike["factor"] * mean:
            return None
        return spike["action"], {"kind": "spike", "norm": norm, "factor": spike["factor"], "mean": mean}

    def on_trouble(self, trouble, step, rows):
        """Leaves out the update; or saves what was before the step, and ends the run."""
        action, reason = trouble
        if action == "skip":
            self.counters.take(step, rows)
            return self.emit("skip", **self.position(), **reason)
        self.save()
        if self.rank != 0:
            raise Failure(OTHER_RANK, "rank 0 says why")
        raise Failure(reason.pop("kind"), f"step {step} cannot be used", step=step, **reason)

    # ---- reports

    def emit_detail(self, step, squares, sums, routing):
        """The record of the updates by role and of the routers."""
        dist.all_reduce(sums)
        weights, changes = sums.tolist()
        roles = {
            role: {"gradient_norm": math.sqrt(square), "update_ratio": math.sqrt(change / weight) if weight > 0.0 else 0.0}
            for role, square, weight, change in zip(self.optimiser.roles, squares, weights, changes)
        }
        tokens = self.settings["batch"] * self.settings["accumulate"] * self.settings["seq"]
        ffn, attention = self.recorder.finish(routing, tokens)
        self.emit("detail", step=step, roles=roles, ffn_routing=ffn, attention_routing=attention)

    def measure(self):
        """Measures on held-back text, unless a signal comes meanwhile; returns whether one came."""
        if not self.held_back:
            return False
        found = {}
        for domain in self.held_back:
            sums = torch.zeros(2, dtype=torch.float64, device=self.device)
            for start in range(0, len(domain.places), self.settings["batch"]):
                if self.agree(self.is_stop_asked()):
                    self.model.reshard()
                    return True
                sums += self.likelihood(domain, domain.places[start : start + self.settings["batch"]])
            dist.all_reduce(sums)
            total, tokens = sums.tolist()
            found[domain.name] = {"nll": total / max(tokens, 1), "tokens": int(tokens)}
        # The outermost weights stay gathered until a backward pass.
        self.model.reshard()
        self.measured = self.counters.step
        self.emit("validation", step=self.counters.step, domains=found)
        return False

    @torch.no_grad()
    def likelihood(self, domain, places):
        """The sum of the losses of this rank's part of some rows, and the number of its predictions."""
        low, high = self.rank * len(places) // self.ranks, (self.rank + 1) * len(places) // self.ranks
        reader = RowReader(domain.mixture, self.reader.separate, 0, 1)
        # A rank without rows still takes part, as the others wait for its weights; it counts nothing.
        batch = reader.batch(places[low:high] or places[:1])
        ids, targets, predicted = (self.to_device(part) for part in (batch.ids, batch.targets, batch.predicted))
        documents = None if batch.documents is None else self.to_device(batch.documents)
        nll = self.model(ids, targets, None, documents).view(predicted.shape)
        counted = predicted if low < high else torch.zeros_like(predicted)
        # A product would keep what is not a number.
        nll = nll.double().where(counted, torch.zeros((), dtype=torch.float64, device=self.device))
        return torch.stack([nll.sum(), counted.sum().double()])

    # ---- saving

    def save(self):
        """Writes the state, unless this step has one; bam-convert makes the checkpoint."""
        counters = self.counters
        if self.saved == counters.step:
            return
        if self.rank == 0:
            Path(self.plan["scratch"]).mkdir(parents=True, exist_ok=True)
            # Files of the file system, such as `.nfs…`, may stay.
            while any(Path(self.plan["scratch"]).glob("training-state*")):
                check_reader()
                time.sleep(0.05)
        dist.barrier()
        files = self.writer.write()
        self.saved = counters.step
        self.emit("state", **self.position(), files=files)

    def position(self):
        """Where the run is, as a checkpoint says it."""
        counters, rows = self.counters, self.settings["batch"] * self.settings["accumulate"]
        return {
            "step": counters.step, "row": counters.step * rows, "updates": counters.updates, "tokens": counters.tokens,
            "norm_mean": counters.norm_mean, "norms": counters.norms,
        }  # fmt: skip


def cut(values, *lengths):
    """Parts of these lengths in turn, what is left, and the last few (a negative length)."""
    *lengths, last = lengths
    parts, start = [], 0
    for length in lengths:
        parts.append(values[start : start + length])
        start += length
    return *parts, values[start:last], values[last:]
