"""AdamW over each rank's rows of the parameters, with one limit on the norm of all gradients."""

import torch
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw


class Shard:
    """A rank's rows of one parameter, with their moments where it trains."""

    def __init__(self, entry, tensor, rank, ranks):
        """`tensor` is the parameter; or a buffer, which every rank holds whole and no gradient trains."""
        self.entry, self.name, self.tensor = entry, entry["name"], tensor
        self.is_whole = not isinstance(tensor, DTensor)
        self.local = (tensor if self.is_whole else tensor.to_local()).detach()
        self.elements = tensor.numel()
        count = entry["shape"][0]
        # As FSDP cuts: equal pieces, and what is left for the last ranks.
        size = count if self.is_whole else -(-count // ranks)
        start = 0 if self.is_whole else min(rank * size, count)
        self.rows = start, min(start + size, count)
        assert self.local.shape[0] == self.rows[1] - self.rows[0], (self.name, self.local.shape, self.rows)
        self.follows_gradient = entry["trained"] and not entry["balances"]
        self.first = torch.zeros_like(self.local) if self.follows_gradient else None
        self.second = torch.zeros_like(self.local) if self.follows_gradient else None

    def parts(self):
        """Master weights and moments; a buffer's moments are zero."""
        if self.first is None:
            return self.local, torch.zeros_like(self.local), torch.zeros_like(self.local)
        return self.local, self.first, self.second

    def gradient(self):
        """This rank's rows of the gradient; zero where nothing reached the parameter."""
        found = self.tensor.grad
        return torch.zeros_like(self.local) if found is None else found.to_local()


class AdamW:
    """Updates what trains. Matrices decay; routers have a learning rate of their own."""

    def __init__(self, settings, shards, device):
        self.settings, self.device = settings, device
        self.shards = [shard for shard in shards if shard.follows_gradient]
        # A rank can hold no rows of a small parameter.
        self.held = [shard for shard in self.shards if shard.local.numel()]
        self.roles = sorted({shard.entry["role"] for shard in shards if shard.entry["trained"]})
        numbers = [self.roles.index(shard.entry["role"]) for shard in self.held]
        # A matrix product adds in a fixed order, unlike additions by index on a GPU.
        self.role_of = torch.eye(len(self.roles), dtype=torch.float64)[:, numbers].to(device)

    @torch.no_grad()
    def squares(self):
        """The squared norm of this rank's gradients, by role, float64."""
        gradients = [shard.gradient() for shard in self.held]
        # In float32, the square of a large gradient would be infinite.
        return self.by_role(torch._foreach_norm(gradients, dtype=torch.float64) if gradients else [])

    def by_role(self, norms):
        """The sums of squares of each role, from a norm for each parameter."""
        sums = torch.zeros(len(self.roles), dtype=torch.float64, device=self.device)
        if not norms:
            return sums
        return self.role_of @ torch.stack(list(norms)).square()

    @torch.no_grad()
    def update(self, number, rates, scale, measured=False):
        """Makes update `number`, counted from 1, with the rates of others and of routers.

        Measured, returns the sums of squares of weights before and of their changes by role `[2, roles]`.
        """
        if scale != 1.0 and self.held:
            torch._foreach_mul_([shard.gradient() for shard in self.held], scale)
        if not measured:
            for (router, decay), shards in self.groups().items():
                self.step(shards, number, rates[router], decay)
            return None
        weights, changes = [], []
        for shard in self.held:
            # One at a time, so that a single tensor is held twice.
            before = shard.local.clone()
            self.step([shard], number, rates[shard.entry["router"]], self.decay(shard))
            weights.append(torch.linalg.vector_norm(before, dtype=torch.float64))
            changes.append(torch.linalg.vector_norm(before.sub_(shard.local), dtype=torch.float64))
        return torch.stack([self.by_role(weights), self.by_role(changes)])

    def decay(self, shard):
        return self.settings["weight-decay"] if shard.entry["decay"] else 0.0

    def groups(self):
        found = {}
        for shard in self.held:
            found.setdefault((shard.entry["router"], self.decay(shard)), []).append(shard)
        return found

    def step(self, shards, number, rate, decay):
        numbers = torch.full((len(shards),), float(number - 1), device=self.device)
        adamw(
            [shard.local for shard in shards], [shard.gradient() for shard in shards],
            [shard.first for shard in shards], [shard.second for shard in shards], [], list(numbers.unbind()),
            fused=True, amsgrad=False, maximize=False, lr=rate, weight_decay=decay, beta1=self.settings["beta1"],
            beta2=self.settings["beta2"], eps=self.settings["epsilon"],
        )  # fmt: skip

    def clear(self):
        """Frees the gradients."""
        for shard in self.shards:
            shard.tensor.grad = None
