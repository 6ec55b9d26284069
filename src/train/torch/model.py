"""The model that trains: `modeling_bam.py` with sharded weights, documents in a row, and experts by sorted tokens.

Dense models and stock mixtures are BAMs without attention experts. Shapes: b batch, s positions, d hidden size, t tokens,
k experts of a token.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import modeling_bam as bam
from .configuration_bam import BamConfig
from .events import Failure
from .losses import Head, NextTokenLoss

# The name of our attention in transformers.
ATTENTION = "bam_training"


def attend(module, query, key, value, attention_mask, scaling, softcap=None, **_):
    """Causal attention; `[b, heads, s, head_dim]` in, `[b, s, heads, head_dim]` out.

    `attention_mask` `[b or 1, 1, s, s]` says which keys a query sees; without one it sees all before it.
    """
    groups = module.num_key_value_groups
    if query.is_cuda and attention_mask is None and softcap is None:
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=groups > 1)
        return y.transpose(1, 2), None
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    if softcap is None:
        y = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, is_causal=attention_mask is None, scale=scaling
        )
        return y.transpose(1, 2), None
    # The kernels of torch cannot cap scores.
    scores = bam.soft_capped(query @ key.transpose(2, 3) * scaling, softcap)
    hidden = ~visible(None, query.shape[2], None, query.device) if attention_mask is None else ~attention_mask
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), None


def visible(documents, seq, window, device):
    """Which keys each query sees, `[b or 1, 1, s, s]`: those before it, in its window and its document."""
    position = torch.arange(seq, device=device)
    seen = position[None, :] <= position[:, None]
    if window is not None:
        seen = seen & (position[None, :] > position[:, None] - window)
    seen = seen[None]
    if documents is not None:
        seen = seen & (documents[:, None, :] == documents[:, :, None])
    return seen[:, None]


class Spread(torch.autograd.Function):
    """Rows `[t, d]` of tokens for their experts `[t · k, d]`, sorted by expert.

    Indexing would add gradients up atomically on a GPU, in an order that changes from run to run.
    """

    @staticmethod
    def forward(ctx, x, order, inverse, k):
        ctx.inverse, ctx.k = inverse, k
        return x[order // k]

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.inverse].unflatten(0, (-1, ctx.k)).sum(dim=1), None, None, None


class Collect(torch.autograd.Function):
    """Rows sorted by expert, back in the order of tokens."""

    @staticmethod
    def forward(ctx, y, order, inverse):
        ctx.order = order
        return y[inverse]

    @staticmethod
    def backward(ctx, grad):
        return grad[ctx.order], None, None


def run_experts(experts, x, chosen, gates):
    """What `BamExperts.forward` computes, with one wait for the device instead of one an expert.

    `[t, d]`, `[t, k]`, `[t, k]` to `[t, d]`. Every rank enters every expert: an expert without tokens runs on no rows, so its
    weights get a gradient of zero, and ranks exchange the gradients of the same tensors.
    """
    order = chosen.flatten().argsort(stable=True)
    inverse = order.argsort()
    sizes = (chosen.flatten()[:, None] == torch.arange(len(experts), device=x.device)).sum(dim=0).tolist()
    k = chosen.shape[1]
    parts = Spread.apply(x, order, inverse, k).split(sizes)
    y = Collect.apply(torch.cat([expert(part) for expert, part in zip(experts, parts)]), order, inverse)
    return (gates.to(x.dtype)[..., None] * y.unflatten(0, (-1, k))).sum(dim=1)


class Compiled:
    """A forward function that torch compiles, and that can run as it is, too."""

    def __init__(self, forward):
        self.forward, self.compiled, self.is_eager = forward, torch.compile(forward), False

    def __call__(self, *args, **kwargs):
        return (self.forward if self.is_eager else self.compiled)(*args, **kwargs)


def recomputed(forward):
    """A forward function of which the backward pass keeps the inputs, and which then runs again."""

    def run(*args, **kwargs):
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


class TrainedModel(nn.Module):
    """The losses of next tokens, and the logits of feed-forward routers."""

    def __init__(self, causal_lm):
        super().__init__()
        self.causal_lm, self.head, self.angles, self.compiled = causal_lm, Head(causal_lm.config), {}, []

    def forward(self, ids, targets, weights, documents=None):
        """`[b, s]` each. With gradients: the weighted sum of the losses, each loss `[b · s]`, and router logits
        `[b · s, experts]` by layer. Without: the losses."""
        config, model = self.causal_lm.config, self.causal_lm.model
        x = model.embed_tokens(ids)
        factor = config.embedding_multiplier
        if factor is not None:
            # Gemma's classes hold the root of the width in the dtype of the embeddings.
            is_root = factor == config.hidden_size**0.5
            x = x * (torch.tensor(factor, dtype=x.dtype).item() if is_root else factor)
        masks = {kind: self.mask(kind, ids, documents) for kind in set(config.layer_types)}
        scale = bam.query_scale(config, torch.arange(ids.shape[1], device=ids.device)[None])
        router_logits = []
        for number, (block, kind) in enumerate(zip(model.layers, config.layer_types)):
            angles = self.angles_of(kind, ids) if config.rotates(number) else None
            x, logits = block(x, attention_mask=masks[kind], angles=angles, query_scale=scale)
            if logits is not None:
                router_logits.append(logits)
        x = model.norm(x).flatten(0, 1)
        head = self.causal_lm.lm_head
        if not torch.is_grad_enabled():
            return self.head.likelihoods(x, head.weight, head.bias, targets.flatten())
        total, nlls = NextTokenLoss.apply(x, head.weight, head.bias, targets.flatten(), weights.flatten(), self.head)
        return total, nlls, router_logits

    def mask(self, kind, ids, documents):
        window = self.causal_lm.config.sliding_window if kind == "sliding_attention" else None
        seq = ids.shape[1]
        if documents is None and (window is None or window >= seq):
            return None
        return visible(documents, seq, window, ids.device)

    def angles_of(self, kind, ids):
        """Rotations of all positions of a row, which are the same in every batch."""
        key = kind, ids.shape[1]
        if key not in self.angles:
            positions = torch.arange(ids.shape[1], device=ids.device)[None]
            with torch.no_grad():
                self.angles[key] = bam.rotary_angles(self.causal_lm.config.of_kind(kind), positions)
        return self.angles[key]

    def blocks(self):
        return self.causal_lm.model.layers

    def prepare(self, compiles, recomputes):
        """Compiles what can be compiled, and lets layers run again in the backward pass."""
        for block in self.blocks():
            if compiles:
                # Experts wait for the sizes of their parts on the host, which no compiled graph can hold.
                part = block.self_attn if isinstance(block.mlp, bam.BamMixture) else block
                part.forward = Compiled(part.forward)
                self.compiled.append(part.forward)
            if recomputes:
                block.forward = recomputed(block.forward)

    def run_eagerly(self, is_eager):
        """Compiled layers may leave out what hooks on their routers do."""
        for compiled in self.compiled:
            compiled.is_eager = is_eager

    def mixtures(self):
        """The feed-forward mixtures with their layers."""
        return [(layer, block.mlp) for layer, block in enumerate(self.blocks()) if isinstance(block.mlp, bam.BamMixture)]

    def routers(self):
        """All routers: layer, kind, module, experts of a token, whether gates are divided by their sum."""
        config, found = self.causal_lm.config, []
        for layer, block in enumerate(self.blocks()):
            if isinstance(block.mlp, bam.BamMixture):
                found.append((layer, "ffn", block.mlp.router, config.num_experts_per_tok, config.norm_topk_prob))
            if config.has_attention_experts(layer):
                top_k, renormalise = config.num_attention_experts_per_tok, config.norm_topk_prob_attention
                found.append((layer, "attention", block.self_attn.router, top_k, renormalise))
        return found


def build(plan, device, mesh):
    """The model on `device` without its weights: each rank holds its rows of every parameter, in float32."""
    config = BamConfig.from_dict(plan["model"]["config"])
    config.use_cache, config.attention_dropout = False, 0.0
    with torch.device("meta"):
        causal_lm = bam.BamForCausalLM(config)
    if config.tie_word_embeddings:
        causal_lm.lm_head.weight = causal_lm.model.embed_tokens.weight
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    config._attn_implementation = ATTENTION
    bam.BamExperts.forward = run_experts
    causal_lm = causal_lm.float()
    freeze(plan, causal_lm)

    model = TrainedModel(causal_lm).train()
    model.prepare(plan["operation"]["compile"], plan["operation"]["gradient_checkpointing"])
    # Inputs stay as they are: rotations and weights of losses are float32.
    dtype = torch.bfloat16 if plan["settings"]["dtype"] == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    shard = functools.partial(fully_shard, mesh=mesh, mp_policy=policy)
    blocks = [shard(block, reshard_after_forward=True) for block in model.blocks()]
    for block, following in zip(blocks, blocks[1:]):
        # Waiting for the sizes of experts would otherwise delay the next gather.
        block.set_modules_to_forward_prefetch([following])
    shard(model)
    return model.to_empty(device=device)


def freeze(plan, causal_lm):
    """Sets what trains, and checks that the plan has every parameter and buffer of the module."""
    listed = {entry["module"]: entry for entry in plan["parameters"]}
    held = dict(causal_lm.named_parameters()) | dict(causal_lm.named_buffers())
    for name in sorted(held.keys() ^ listed.keys()):
        where = "the model, but not in the plan" if name in held else "the plan, but not in the model"
        raise Failure("plan", f"parameter `{name}` is in {where}")
    for name, parameter in causal_lm.named_parameters():
        shape = listed[name]["shape"]
        if list(parameter.shape) != shape:
            raise Failure("plan", f"parameter `{name}` has the shape {list(parameter.shape)}, the plan says {shape}")
        parameter.requires_grad_(listed[name]["trained"])
