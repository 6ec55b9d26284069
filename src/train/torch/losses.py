"""The losses of a batch: losses of next tokens in chunks, and losses of routers over all ranks.

Shapes: t tokens of this rank, d hidden size, v vocabulary, l layers with experts, e experts, k experts of a token.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F

# Logits in memory at once, at most.
LOGITS_ON_CPU, LOGITS_ON_GPU = 1 << 23, 1 << 26


class Head:
    """How hidden states become logits."""

    def __init__(self, config):
        self.scale, self.divisor, self.cap = config.logit_scale, config.logits_divisor, config.final_logit_softcapping
        self.vocabulary = config.vocab_size

    def nll(self, x, weight, bias, targets):
        """Negative log-likelihoods `[t]` in float32 of `targets` `[t]` after `x` `[t, d]`."""
        logits = F.linear(x, weight).float()
        if bias is not None:
            logits = logits + bias.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.cap is not None:
            logits = self.cap * torch.tanh(logits / self.cap)
        return F.cross_entropy(logits, targets, reduction="none")

    def chunks(self, x):
        """Ranges of tokens whose logits fit into memory."""
        most = LOGITS_ON_GPU if x.is_cuda else LOGITS_ON_CPU
        size = max(most // self.vocabulary, 16)
        return [slice(start, start + size) for start in range(0, len(x), size)]

    def likelihoods(self, x, weight, bias, targets):
        """The same as `nll`, in chunks and without gradients."""
        return torch.cat([self.nll(x[part], weight, bias, targets[part]) for part in self.chunks(x)])


class NextTokenLoss(torch.autograd.Function):
    """The weighted sum of next-token losses, and each of them outside the graph.

    The forward pass takes the gradients chunk by chunk, so that logits never exist for all tokens. The gradient of the
    head is added up in float32.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, targets, weights, head):
        needs = ctx.needs_input_grad[:3]
        grad_x = torch.empty_like(x) if needs[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if needs[2] else None
        total, nlls = torch.zeros((), device=x.device), []
        for part in head.chunks(x):
            with torch.enable_grad():
                rows = x[part].detach().requires_grad_(needs[0])
                own = [weight.detach().requires_grad_(needs[1]), None]
                if bias is not None:
                    own[1] = bias.detach().requires_grad_(needs[2])
                nll = head.nll(rows, *own, targets[part])
                loss = (nll * weights[part]).sum()
            wanted = [tensor for tensor in (rows, *own) if tensor is not None and tensor.requires_grad]
            found = list(torch.autograd.grad(loss, wanted)) if wanted else []
            if needs[0]:
                grad_x[part] = found.pop(0)
            if needs[1]:
                grad_weight += found.pop(0)
            if needs[2]:
                grad_bias += found.pop(0)
            total += loss.detach()
            nlls.append(nll.detach())
        ctx.grads = grad_x, grad_weight, grad_bias
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (x, weight, bias)]
        nlls = torch.cat(nlls)
        ctx.mark_non_differentiable(nlls)
        return total, nlls

    @staticmethod
    def backward(ctx, grad_total, _):
        grads = [
            None if grad is None else (grad * grad_total).to(dtype) for grad, dtype in zip(ctx.grads, ctx.dtypes)
        ]
        ctx.grads = None
        return *grads, None, None, None


class RouterLosses:
    """The losses of all feed-forward routers over a batch of all ranks (BAM, section 3.3, equation 2).

    Load balance is a product of means over the whole batch, so ranks exchange sums before the backward pass. The gradient
    of a product needs the other factor's sum over all ranks and this rank's own tokens, and no more communication.
    """

    def __init__(self, settings, config, biases):
        self.soft = settings["load-balance"] == "soft"
        self.balance_weight, self.z_weight = settings["aux-loss-coef"], settings["z-loss-coef"]
        self.top_k, self.renormalise = config.num_experts_per_tok, config.norm_topk_prob
        self.biases = biases

    def __call__(self, router_logits, tokens):
        """This rank's part of the weighted loss, in the graph; and over all ranks, outside it, both losses without their
        weights `[2]` and the tokens that chose each expert `[l, e]`. `tokens` is their number on all ranks."""
        biases = self.biases or [None] * len(router_logits)
        # Layer by layer, as the logits of all layers together would be copied once more.
        sums = [self.sums(logits, bias) for logits, bias in zip(router_logits, biases)]
        own_share, own_probability, own_counts, own_z = (torch.stack(part) for part in zip(*sums))
        own_z, experts = own_z.sum(), own_share.shape[1]
        packed = torch.cat([
            own_share.flatten(), own_probability.flatten(), own_counts.flatten(), own_z[None],
        ]).detach().double()  # fmt: skip
        dist.all_reduce(packed)
        share, probability, counts = packed[:-1].view(3, -1, experts)
        balance = experts * (share * probability).sum() / tokens**2
        scale = experts / tokens**2
        weighted = scale * (share.float() * own_probability).sum()
        if self.soft:
            weighted = weighted + scale * (own_share * probability.float()).sum()
        loss = self.balance_weight * weighted + self.z_weight * own_z / tokens
        return loss, torch.stack([balance, packed[-1] / tokens]), counts

    def sums(self, logits, bias):
        """Sums over this rank's tokens of one router's logits `[t, e]`.

        They are the shares of load balance, the probabilities and the tokens of each expert `[e]`, and the z-losses.
        """
        probabilities = logits.softmax(dim=-1)
        mask = chosen_experts(probabilities, self.top_k, bias)
        share = mask.sum(dim=0)
        if self.soft:
            share = gates_of(probabilities, mask, self.top_k, self.renormalise).sum(dim=0)
        return share, probabilities.sum(dim=0), mask.sum(dim=0), logits.logsumexp(dim=-1).square().sum()


@torch.no_grad()
def chosen_experts(probabilities, top_k, bias):
    """Ones for the experts that each token chooses and zeros for the others `[t, e]`."""
    scores = probabilities if bias is None else probabilities + bias.float()
    return torch.zeros_like(probabilities).scatter_(-1, scores.topk(top_k, dim=-1).indices, 1.0)


def gates_of(probabilities, mask, top_k, renormalise):
    """The weights of the chosen experts `[t, e]`, and zeros."""
    gates = probabilities * mask
    return gates / gates.sum(dim=-1, keepdim=True) if renormalise and top_k < mask.shape[-1] else gates


class Recorder:
    """Sums of what all routers do with the tokens of a step, for the log."""

    def __init__(self, routers):
        """`routers`: `(layer, kind, module, top_k, renormalise)` of each."""
        self.routers, self.sums, self.is_on, self.is_detailed = routers, {}, False, False
        for number, (_, _, module, _, _) in enumerate(routers):
            module.register_forward_hook(lambda module, _, logits, number=number: self.add(number, module, logits))

    def start(self):
        """Begins a step that the log has in detail."""
        self.sums, self.is_detailed = {}, True

    def listen(self, is_on):
        """Counts forward passes only: layers that run again in the backward pass would count twice."""
        self.is_on = is_on and self.is_detailed

    @torch.no_grad()
    def add(self, number, module, logits):
        if not self.is_on:
            return
        _, _, _, top_k, renormalise = self.routers[number]
        logits = logits.detach().flatten(0, -2)
        if module.sigmoid_scale is None:
            probabilities = logits.softmax(dim=-1)
            mask = chosen_experts(probabilities, top_k, module.choice_bias)
            gates = gates_of(probabilities, mask, top_k, renormalise)
        else:  # the share of each sigmoid in their sum
            probabilities = F.logsigmoid(logits).softmax(dim=-1)
            gates = logits.sigmoid() * module.sigmoid_scale
        if top_k == gates.shape[-1]:
            mask = (gates > 0).float()
        entropy = torch.special.entr(probabilities).sum()
        sums = torch.cat([mask.sum(0), gates.sum(0), entropy[None]]).double()
        self.sums[number] = self.sums[number] + sums if number in self.sums else sums

    def packed(self):
        """The sums of all routers, one after another."""
        self.is_detailed = False
        return torch.cat([self.sums[number] for number in range(len(self.routers))])

    def finish(self, values, tokens):
        """The records of feed-forward and of attention routers, from sums over all ranks and the number of tokens."""
        found = {"ffn": [], "attention": []}
        for layer, kind, module, _, _ in self.routers:
            experts = module.weight.shape[0]  # of all ranks
            chosen, gates = values[:experts], values[experts : 2 * experts]
            load = [count / max(sum(chosen), 1) for count in chosen]
            mean_entropy = values[2 * experts] / tokens / torch.tensor(float(experts)).log().item() if experts > 1 else 0.0
            values = values[2 * experts + 1 :]
            found[kind].append({
                "layer": layer,
                "load": load,
                "mean_gates": [gate / tokens for gate in gates],
                "entropy": entropy_of(load) if kind == "ffn" else min(max(mean_entropy, 0.0), 1.0),
            })  # fmt: skip
        return found["ffn"], found["attention"]


def entropy_of(shares):
    """The entropy of shares that sum to 1, divided by the entropy of equal shares."""
    if len(shares) < 2:
        return 0.0
    shares = torch.tensor(shares, dtype=torch.float64)
    found = torch.special.entr(shares).sum() / torch.tensor(float(len(shares)), dtype=torch.float64).log()
    return min(max(found.item(), 0.0), 1.0)
