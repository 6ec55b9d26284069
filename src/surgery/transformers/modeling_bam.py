"""BAM in PyTorch: mixtures whose attention and feed-forward experts come from dense models.

Zhang et al., "BAM! Just Like That: Simple and Efficient Parameter Upcycling for Mixture of Experts", arXiv 2408.08274.
"The paper" below. Runs under transformers 4.57 and 5.x. Shapes: b batch, s positions, d hidden size.
"""

import inspect
from typing import Optional, Union

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import can_return_tuple

from .configuration_bam import BamConfig

try:
    from transformers.integrations import use_experts_implementation
except ImportError:  # 4.57, which has no kernels for experts

    def use_experts_implementation(experts):
        return experts


TRANSFORMERS_4 = transformers.__version__.startswith("4.")
# What outputs call the cache; from 5.24 on `generate` hands it to models under that name too.
CACHE = "cache" if "cache" in MoeModelOutputWithPast.__dataclass_fields__ else "past_key_values"


class BamNorm(nn.Module):
    """RMS or layer norm over the last axis, computed in f32, with a weight or one plus it, and a bias where there is one.

    `make_norm` makes them: vLLM computes all norms of a class as the first of them, so each formula has its class.
    """

    def __init__(self, config, shape, kind, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape)) if bias else None
        # No property of the configuration: a seed's key of the same name could not be set.
        said = getattr(config, f"{config.norm_type}_norm_eps"), config.rms_norm_eps, config.layer_norm_eps
        self.eps = next((eps for eps in said if eps is not None), 1e-6)
        self.kind, self.offset = kind, config.norm_offset

    def forward(self, x):
        wide = x.float()
        if self.kind == "layer":
            wide = wide - wide.mean(-1, keepdim=True)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if self.kind == "rms" and not self.offset:  # where the rounding falls is the family's habit: Llama's here
            y = self.weight * wide.to(x.dtype)
            return y if self.bias is None else y + self.bias
        y = (self.weight.float() + 1 if self.offset else self.weight.float()) * wide
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)


class BamRmsNorm(BamNorm):
    """An RMS norm that has a weight and nothing else."""


class BamOffsetRmsNorm(BamNorm):
    """An RMS norm that multiplies by one plus its weight."""


def make_norm(config, shape, kind, bias=False):
    """A norm of one shape."""
    if kind == "layer" or bias:
        return BamNorm(config, shape, kind, bias)
    return (BamOffsetRmsNorm if config.norm_offset else BamRmsNorm)(config, shape, kind)


def rotary_angles(config, position_ids):
    """Cosine and sine for each position, f32 `[b, s, rotary dims / 2]`.

    Computed anew for each call: half a head of numbers costs nothing, and there is no buffer that a cast to bf16 rounds
    or that loading on the meta device leaves empty.
    """
    rope = config.rope_parameters
    kind, dims = rope["rope_type"], int(config.head_dim * rope.get("partial_rotary_factor", 1.0))
    steps = torch.arange(0, dims, 2, dtype=torch.float32, device=position_ids.device) / dims
    scale = 1.0
    if kind == "default":
        frequencies = config.rope_theta**-steps
    elif kind in ("linear", "llama3", "yarn"):
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, position_ids.device)
    elif kind == "dynamic":  # for the longest position of the call; 4.57 and 5.x agree
        length = int(position_ids.max()) + 1
        frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config, position_ids.device, seq_len=length)
    elif kind == "longrope":  # written out: the two versions look for the original length in different places
        long = int(position_ids.max()) + 1 > rope["original_max_position_embeddings"]
        factors = torch.tensor(rope["long_factor" if long else "short_factor"], device=position_ids.device)
        frequencies, scale = 1.0 / (factors * config.rope_theta**steps), rope["attention_factor"]
    else:
        raise ValueError(f"config.json: rope_type is {kind!r}, expected default, linear, dynamic, yarn, longrope or llama3")
    angles = position_ids[..., None].float() * frequencies.float()
    return angles.cos() * scale, angles.sin() * scale


def rotate(x, angles, interleaved):
    """Rotary embedding of heads `[b, s, heads, head_dim]`; dims past the rotary ones are left alone, and all without angles."""
    if angles is None:
        return x
    cos, sin = (part[:, :, None, :] for part in angles)
    dims = 2 * cos.shape[-1]
    turned, rest = x[..., :dims].float(), x[..., dims:]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    first, second = first * cos - second * sin, second * cos + first * sin
    turned = torch.stack((first, second), dim=-1).flatten(-2) if interleaved else torch.cat((first, second), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def query_scale(config, position_ids):
    """The factor on queries at each position, f32 `[b, s, 1, 1]`, or None."""
    if not config.query_scale_beta:
        return None
    steps = position_ids // config.query_scale_context
    return (1 + config.query_scale_beta * steps.float().log1p())[..., None, None]


def soft_capped(x, cap):
    """Values between -cap and cap, or as they are without a cap."""
    return x if cap is None else cap * torch.tanh(x / cap)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, **kwargs):
    """Attention in plain matrix products; `[b, heads, s, head_dim]` in, `[b, s, heads, head_dim]` out."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = soft_capped(query @ key.transpose(2, 3) * scaling, softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class BamRouter(nn.Module):
    """Scores each token for each expert, in f32 whatever the model and autocast compute in.

    Not an `nn.Linear`, so that quantisers and serving engines do not replace it by something less exact.
    """

    def __init__(self, config, experts, feed_forward):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, config.hidden_size))
        self.biased_choice = feed_forward and config.router_bias == "choice"
        if self.biased_choice:  # a buffer: nothing trains it by gradient, and DDP and FSDP leave it whole
            self.register_buffer("bias", torch.zeros(experts))
        else:
            self.bias = nn.Parameter(torch.empty(experts)) if config.router_bias is True else None
        is_sigmoid = not feed_forward and config.attention_gate == "sigmoid"
        self.sigmoid_scale = config.attention_gate_scale if is_sigmoid else None

    def forward(self, x):
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None or self.biased_choice else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias)

    @property
    def choice_bias(self):
        """What is added to the gates where the largest are chosen, and nowhere else; or None."""
        return self.bias if self.biased_choice else None


def choose(gates, top_k, bias=None):
    """The experts `[..., k]` with the largest gates, or gates plus bias."""
    return (gates if bias is None else gates + bias.float()).topk(top_k, dim=-1).indices


def top_gates(logits, top_k, renormalise, bias=None):
    """Gates of the chosen experts and their numbers, `[..., k]`. Softmax over all experts comes first (paper §3.3)."""
    gates = logits.softmax(dim=-1)
    experts = choose(gates.detach(), top_k, bias)
    gates = gates.gather(-1, experts)
    return (gates / gates.sum(-1, keepdim=True) if renormalise else gates), experts


def attention_gates(logits, config, sigmoid_scale):
    """Gates of all attention experts `[.., experts]`, zero for those not chosen: independent of each other with a scale."""
    if sigmoid_scale is not None:
        return logits.sigmoid() * sigmoid_scale
    top, chosen = top_gates(logits, config.num_attention_experts_per_tok, config.norm_topk_prob_attention)
    return torch.zeros_like(logits).scatter(-1, chosen, top)


class BamAdapter(nn.Linear):
    """What the output of an expert passes; the identity in a fresh model ("BAM with adapters")."""

    def __init__(self, d):
        super().__init__(d, d, bias=False)


class BamHeads(nn.Module):
    """Projections of an attention: all of them, or the part that one expert has."""

    def __init__(self, config, queries=True, keys=True, adapter=False):
        super().__init__()
        d, self.head_dim = config.hidden_size, config.head_dim
        self.clip, self.norm_of_all_heads = config.clip_qkv, config.qk_norm == "full"
        self.norm_after_rotation = config.qk_norm_after_rope
        self.q_norm = self.k_norm = self.adapter = None
        if queries:
            width = config.num_attention_heads * config.head_dim
            self.q_proj = nn.Linear(d, width, bias=config.attention_bias)
            self.o_proj = nn.Linear(width, d, bias=config.attention_output_bias)
            self.q_norm = head_norm(config, config.num_attention_heads)
        if keys:
            width = config.num_key_value_heads * config.head_dim
            self.k_proj = nn.Linear(d, width, bias=config.attention_bias)
            self.v_proj = nn.Linear(d, width, bias=config.attention_bias)
            self.k_norm = head_norm(config, config.num_key_value_heads)
        if adapter:
            self.adapter = BamAdapter(d)

    def queries(self, x, angles, interleaved):
        return self.rotated(self.q_proj(x), self.q_norm, angles, interleaved)

    def keys_values(self, x, angles, interleaved):
        return self.rotated(self.k_proj(x), self.k_norm, angles, interleaved), self.by_head(self.v_proj(x))

    def rotated(self, x, norm, angles, interleaved):
        """Queries or keys by head, normed before or after their rotation."""
        if self.norm_after_rotation and norm is not None:
            return self.normed(rotate(self.by_head(x), angles, interleaved).flatten(-2), norm)
        return rotate(self.by_head(x, norm), angles, interleaved)

    def by_head(self, x, norm=None):
        """A projection as `[b, s, heads, head_dim]`, normed and clipped where the seed does so."""
        x = self.normed(x, norm)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def normed(self, x, norm):
        heads = (-1, self.head_dim)
        if norm is None:
            return x.unflatten(-1, heads)
        return norm(x).unflatten(-1, heads) if self.norm_of_all_heads else norm(x.unflatten(-1, heads))

    def output(self, heads):
        y = self.o_proj(heads)
        return y if self.adapter is None else self.adapter(y)


def head_norm(config, heads):
    """The norm of queries or keys: one for each head (Qwen3), one a head (Cohere) or one over all heads (OLMoE)."""
    if config.qk_norm == "none":
        return None
    if config.qk_norm == "head_dim":
        return make_norm(config, config.head_dim, "rms")
    if config.qk_norm == "full":
        return make_norm(config, heads * config.head_dim, "rms")
    return make_norm(config, (heads, config.head_dim), "layer")


class BamAttention(BamHeads):
    """Σ over experts of gate · MHA (paper §3.4), or one attention where there are no attention experts.

    All experts are computed in one attention call, exactly: the heads of all experts side by side are one wide attention,
    and as a gate is one number per query and expert it may be applied after the output projection. With keys and values
    per expert that is `experts × heads` query heads over `experts × kv_heads`; with shared ones the seed's KV heads stay,
    and query heads are ordered (kv head, expert, head in group) so that each still meets its own. The cache is an
    ordinary one. Top-k routing zeroes gates: keys and values are needed anyway, as a later token may choose the expert.
    """

    def __init__(self, config, layer):
        mixture = config.has_attention_experts(layer)
        own_keys = not mixture or config.attention_kv == "shared"
        super().__init__(config, queries=not mixture, keys=own_keys)
        self.config = config
        self.layer_idx = layer
        self.shared = mixture and own_keys
        self.is_causal = True
        self.scaling = config.head_dim**-0.5 if config.attention_multiplier is None else config.attention_multiplier
        self.sliding_window = config.sliding_window if config.layer_types[layer] == "sliding_attention" else None
        # Query heads that share a KV head, which `repeat_kv` in transformers reads.
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        if mixture:
            self.router = BamRouter(config, config.num_attention_experts, feed_forward=False)
            # Not named `experts`: serving engines put their fused feed-forward mixture where they see that name.
            self.attention_experts = nn.ModuleList(
                BamHeads(config, keys=not self.shared, adapter=config.expert_adapters)
                for _ in range(config.num_attention_experts)
            )
            if self.shared:
                self.num_key_value_groups *= config.num_attention_experts

    def forward(self, x, attention_mask, angles, query_scale=None, past_key_values=None, **kwargs):
        config, interleaved = self.config, self.config.rope_interleaved
        experts = getattr(self, "attention_experts", [self])
        queries = [expert.queries(x, angles, interleaved) for expert in experts]
        if self.shared:
            groups = [q.unflatten(2, (config.num_key_value_heads, -1)) for q in queries]
            query = torch.stack(groups, dim=3).flatten(2, 4)
        else:
            query = torch.cat(queries, dim=2)
        if query_scale is not None:
            query = query * query_scale.to(query.dtype)
        owners = [self] if self.shared else experts
        keys, values = zip(*(owner.keys_values(x, angles, interleaved) for owner in owners))
        query, key, value = (part.transpose(1, 2) for part in (query, torch.cat(keys, dim=2), torch.cat(values, dim=2)))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attend = eager_attention_forward
        if config._attn_implementation != "eager":
            attend = ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
        if config.attn_logit_softcapping is not None:
            if "sdpa" in config._attn_implementation:
                raise ValueError("sdpa cannot cap attention scores (attn_logit_softcapping); expected eager")
            kwargs["softcap"] = config.attn_logit_softcapping
        heads, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, sliding_window=self.sliding_window,
            dropout=config.attention_dropout if self.training else 0.0, **kwargs,
        )  # fmt: skip

        # Engines flatten the batch, the heads or both.
        heads = heads.reshape(*x.shape[:-1], -1, config.head_dim)
        if len(experts) == 1 and experts[0] is self:
            return self.output(heads.flatten(2)), weights
        if self.shared:
            heads = heads.unflatten(2, (config.num_key_value_heads, len(experts), -1)).transpose(2, 3).flatten(3)
        else:
            heads = heads.unflatten(2, (len(experts), -1)).flatten(3)
        logits = self.router(x)
        gates = attention_gates(logits, config, self.router.sigmoid_scale).to(x.dtype)
        # After the output projection, so that its bias and the adapter are gated too, as in the paper's sum.
        outputs = [gates[:, :, e, None] * expert.output(heads[:, :, e]) for e, expert in enumerate(experts)]
        return sum(outputs[1:], outputs[0]), weights


class BamMlp(nn.Module):
    """A feed-forward network, gated or plain."""

    def __init__(self, config, width, adapter=False):
        super().__init__()
        d, bias = config.hidden_size, config.mlp_bias
        self.gate_proj = nn.Linear(d, width, bias=bias) if config.mlp_type == "gated" else None
        self.up_proj = nn.Linear(d, width, bias=bias)
        self.down_proj = nn.Linear(width, d, bias=bias)
        self.adapter = BamAdapter(d) if adapter else None
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x):
        up = self.up_proj(x)
        y = self.down_proj(self.activation(up) if self.gate_proj is None else self.activation(self.gate_proj(x)) * up)
        return y if self.adapter is None else self.adapter(y)


@use_experts_implementation
class BamPackedExperts:
    """All experts as the kernels of transformers take them; made for each call, so that it keeps no weights alive."""

    forward = None  # The decorator's; without a kernel, experts are not packed.

    def __init__(self, config, activation, gate_up_proj, down_proj):
        self.num_experts, self.act_fn = len(down_proj), activation
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj


def linears_of(experts):
    return [linear for expert in experts for linear in (expert.gate_proj, expert.up_proj, expert.down_proj)]


def are_plain(experts):
    """Whether the experts are as they were made: matrices alone, which nothing wraps, watches or moves."""
    linears = linears_of(experts)
    if any(type(linear) is not nn.Linear or linear.bias is not None for linear in linears):
        return False
    if any(type(linear.weight) is not nn.Parameter for linear in linears):
        return False
    if any(expert.adapter is not None for expert in experts):
        return False
    modules = (*experts, *linears)
    return not any(module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook") for module in modules)


def fit_kernels(weights):
    """Whether weights are alike, and of a dtype that the kernels compute in."""
    if weights[0].dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    kinds = {(weight.dtype, weight.device, weight.shape, weight.is_inference()) for weight in weights}
    return len(kinds) == 1 and weights[0].device.type != "meta"


def as_one(weights):
    """The weights as one tensor `[weights, ...]`, without a copy; None unless they fill their memory one after the other."""
    first = weights[0]
    if first.untyped_storage().nbytes() != len(weights) * first.nbytes:
        return None
    start, size = first.data_ptr(), first.nbytes
    if any(w.data_ptr() != start + i * size or not w.is_contiguous() for i, w in enumerate(weights)):
        return None
    return first.detach().as_strided((len(weights) * first.numel(),), (1,), 0).view(len(weights), *first.shape)


def can_move(weights):
    """Whether each is in memory of its own, or in its place of what `move` made: nothing else then expects it there."""
    if len({weight.data_ptr() for weight in weights}) < len(weights):
        return False
    for index, weight in enumerate(weights):
        room = weight.untyped_storage().nbytes()
        is_placed = room == len(weights) * weight.nbytes and weight.storage_offset() == index * weight.numel()
        if room != weight.nbytes and not is_placed:
            return False
    return True


def move(weights):
    """Moves weights to one piece of memory, one after the other, and leaves each what it was to all who hold it."""
    first = weights[0]
    with torch.inference_mode(first.is_inference()), torch.no_grad():
        together = torch.empty(len(weights), *first.shape, dtype=first.dtype, device=first.device)
        for index, weight in enumerate(weights):
            weight.data = together[index].copy_(weight)  # frees the old one


def moved(weights):
    """The weights as one tensor, moved if need be; None if they may not move."""
    if not fit_kernels(weights):
        return None
    one = as_one(weights)
    if one is None and can_move(weights):
        move(weights)
        one = as_one(weights)
    return one


class BamExperts(nn.ModuleList):
    """Feed-forward experts; a list, so that each keeps the tensors of the model that it comes from."""

    def __init__(self, experts=None, config=None):
        """Without a configuration, as torch calls it for a part of the list, nothing is packed."""
        super().__init__(experts)
        self.config = config

    def forward(self, hidden_states, top_k_index, top_k_weights):
        """`[tokens, d]`, `[tokens, k]`, `[tokens, k]` to `[tokens, d]`."""
        if self.can_pack(hidden_states) and are_plain(self):
            packed = self.pack()
            if packed is not None:
                return packed.forward(hidden_states, top_k_index, top_k_weights.to(hidden_states.dtype))
        return self.one_by_one(hidden_states, top_k_index, top_k_weights)

    def can_pack(self, hidden_states):
        """Whether nothing trains or moves the weights, so that transformers 5 may compute all experts at once."""
        if getattr(self.config, "_experts_implementation", None) in (None, "eager"):  # None in 4.57
            return False
        if self.training or torch.is_grad_enabled() or self.config.mlp_type != "gated" or torch.compiler.is_compiling():
            return False
        sharded = torch.distributed.is_available() and torch.distributed.is_initialized()
        return not sharded and not torch.is_autocast_enabled(hidden_states.device.type)

    def pack(self):
        """The experts for a kernel; None where their weights differ in kind or may not move."""
        weights = [linear.weight for linear in linears_of(self)]
        gate_up = moved([weight for pair in zip(weights[::3], weights[1::3]) for weight in pair])
        down = moved(weights[2::3])
        if gate_up is None or down is None or (gate_up.dtype, gate_up.device) != (down.dtype, down.device):
            return None
        return BamPackedExperts(self.config, self[0].activation, gate_up.view(len(self), -1, gate_up.shape[-1]), down)

    def one_by_one(self, hidden_states, top_k_index, top_k_weights):
        """The experts in turn, for training.

        An expert without tokens still runs, on zero rows. Its weights then get a zero gradient instead of none, and its
        module is entered on every rank as often and in the same order: DDP waits for each gradient, and FSDP gathers
        weights and scatters gradients in collectives that all ranks must reach. Adding `0 * weight` to the loss would
        serve DDP, but touches weights outside the module's `forward`, where FSDP has only its shards of them.
        """
        output = torch.zeros_like(hidden_states)
        for index, expert in enumerate(self):
            token, slot = torch.where(top_k_index == index)
            gate = top_k_weights[token, slot, None].to(hidden_states.dtype)
            output = output.index_add(0, token, (gate * expert(hidden_states[token])).to(output.dtype))
        return output


class BamDenseExperts(nn.Module):
    """Feed-forward experts that all run on all tokens: `BamExperts` as one graph, where vLLM's kernel cannot compute them.

    No list, because vLLM takes each list of this name for experts that its kernel can compute.
    """

    def __init__(self, experts):
        super().__init__()
        for index, expert in enumerate(experts):
            self.add_module(str(index), expert)

    def forward(self, hidden_states, top_k_index, top_k_weights):
        gates = top_k_weights.new_zeros(len(hidden_states), len(self._modules)).scatter(-1, top_k_index, top_k_weights)
        gates = gates.to(hidden_states.dtype).T[..., None]
        outputs = [gate * expert(hidden_states) for gate, expert in zip(gates, self.children())]
        return sum(outputs[1:], outputs[0])


class BamMixture(nn.Module):
    """Σ over the chosen experts of gate · FFN (paper §3.3), plus the shared expert where there is one."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.renormalise = config.norm_topk_prob
        self.multiplier = config.moe_output_multiplier
        self.router = BamRouter(config, config.num_experts, feed_forward=True)
        width, adapter = config.moe_intermediate_size, config.expert_adapters
        experts = [BamMlp(config, width, adapter) for _ in range(config.num_experts)]
        is_dense = config._attn_implementation == "vllm" and not fits_vllm_experts(config)
        self.experts = BamDenseExperts(experts) if is_dense else BamExperts(experts, config)
        self.shared_expert = self.shared_expert_gate = None
        if config.shared_expert_intermediate_size:
            self.shared_expert = BamMlp(config, config.shared_expert_intermediate_size)
            if config.shared_expert_gate:
                self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x):
        tokens = x.flatten(0, -2)
        logits = self.router(tokens)
        gates, chosen = top_gates(logits, self.top_k, self.renormalise, self.router.choice_bias)
        y = self.experts(tokens, chosen, gates)
        if self.shared_expert is not None:
            shared = self.shared_expert(tokens)
            if self.shared_expert_gate is not None:
                shared = self.shared_expert_gate(tokens).sigmoid() * shared
            y = y + shared
        if self.multiplier is not None:
            y = y * self.multiplier
        return y.view(x.shape), logits


class BamBlock(GradientCheckpointingLayer):
    """One layer. Parallel blocks feed attention and feed-forward the same input (paper §3.1)."""

    def __init__(self, config, layer):
        super().__init__()
        self.parallel, self.shares_input = config.block != "sequential", config.block == "parallel"
        self.residual_multiplier = config.residual_multiplier
        self.self_attn = BamAttention(config, layer)
        self.mlp = BamMixture(config) if config.has_experts(layer) else BamMlp(config, config.intermediate_size)
        before, after = config.norm_position != "post", config.norm_position != "pre"
        # The names are the Hugging Face families': `post_attention_layernorm` is the feed-forward's pre-norm in Llama,
        # and a norm of attention's output in models with post-norms (OLMo2) or both (Gemma2).
        mlp_input = "pre_feedforward_layernorm" if after else "post_attention_layernorm"
        self.norms = {
            "attention_input": "input_layernorm" if before else None,
            "attention_output": "post_attention_layernorm" if after else None,
            "mlp_input": mlp_input if before and not self.shares_input else None,
            "mlp_output": "post_feedforward_layernorm" if after else None,
        }
        for name in filter(None, self.norms.values()):
            setattr(self, name, make_norm(config, config.hidden_size, config.norm_type, config.norm_bias))

    def norm(self, where, x):
        return x if self.norms[where] is None else getattr(self, self.norms[where])(x)

    def residual(self, y):
        """What a sublayer adds to the residual stream."""
        return y if self.residual_multiplier is None else y * self.residual_multiplier

    def forward(self, x, attention_mask=None, angles=None, query_scale=None, past_key_values=None, **kwargs):
        """Hidden states `[b, s, d]`, and the router logits `[b · s, experts]` or None."""
        h = self.norm("attention_input", x)
        attention, _ = self.self_attn(h, attention_mask, angles, query_scale, past_key_values=past_key_values, **kwargs)
        attention = self.residual(self.norm("attention_output", attention))
        if not self.parallel:
            x = x + attention
        if not self.shares_input:
            h = self.norm("mlp_input", x)
        y = self.mlp(h)
        y, logits = y if isinstance(self.mlp, BamMixture) else (y, None)
        y = self.residual(self.norm("mlp_output", y))
        return (x + attention + y if self.parallel else x + y), logits


def fits_vllm_experts(config):
    """Whether vLLM's kernel computes these experts: it knows one activation, and neither biases nor adapters."""
    plain = not config.mlp_bias and not config.expert_adapters
    return config.mlp_type == "gated" and config.hidden_act in ("silu", "swish") and plain


def check_vllm(config):
    """Refuses what vLLM would compute wrongly, as it computes attention and logits itself."""
    for rope in (config.of_kind(kind).rope_parameters for kind in config.layer_types):
        if rope["rope_type"] in ("dynamic", "longrope"):
            raise ValueError(
                f"config.json: rope_type is {rope['rope_type']!r}, whose angles depend on the longest text of a batch;"
                " vLLM cannot serve it"
            )
    if getattr(config, "served_by_bam_vllm", False):
        return
    needs = {
        "attention experts": any(map(config.has_attention_experts, range(config.num_hidden_layers))),
        "logits_divisor": config.logits_divisor is not None,
        "logit_scale with final_logit_softcapping": config.logit_scale != 1.0 and config.final_logit_softcapping is not None,
    }
    if any(needs.values()):
        names = ", ".join(name for name, needed in needs.items() if needed)
        raise ValueError(f"vLLM computes this model only with a plugin ({names})\nhint: pip install bam-vllm")


class BamPreTrainedModel(PreTrainedModel):
    config_class = BamConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["BamBlock"]  # what FSDP and device maps keep whole
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        # The default of transformers, which cannot cap attention scores.
        if config.attn_logit_softcapping is not None and config._attn_implementation == "sdpa":
            config._attn_implementation = "eager"
        if config._attn_implementation == "vllm":
            check_vllm(config)
            self._keys_to_ignore_on_load_unexpected = None  # vLLM would not load the head, which it has beside this model

    def _init_weights(self, module):
        # `nn.init` only: 5.x makes these skip what came from the checkpoint, and writes to `.data` would not be.
        std = self.config.initializer_range
        if isinstance(module, BamAdapter):
            nn.init.eye_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding, BamRouter)):
            nn.init.normal_(module.weight, mean=0.0, std=std)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, BamNorm):
            nn.init.constant_(module.weight, 0.0 if module.offset else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BamModel(BamPreTrainedModel):
    """Embedding, blocks and final norm."""

    _keys_to_ignore_on_load_unexpected = [r"lm_head\.(weight|bias)"]  # a checkpoint has the head too

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(BamBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = make_norm(config, config.hidden_size, config.norm_type, config.norm_bias)
        self.gradient_checkpointing = False
        self.post_init()

    def masks(self, embeddings, attention_mask, past_key_values, position_ids):
        """The mask for each kind of layer in the config; vLLM has its own."""
        if self.config._attn_implementation == "vllm":
            return dict.fromkeys(self.config.layer_types)
        # The arguments' names differ between versions: 4.57, 5.0 to 5.23, 5.24.
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        given = dict(
            config=self.config, inputs_embeds=embeddings, input_embeds=embeddings, attention_mask=attention_mask,
            past_key_values=past_key_values, cache=past_key_values, position_ids=position_ids,
            cache_position=torch.arange(seen, seen + embeddings.shape[1], device=embeddings.device),
        )  # fmt: skip
        makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        masks = {}
        for kind in set(self.config.layer_types):
            known = inspect.signature(makers[kind]).parameters
            masks[kind] = makers[kind](**{name: value for name, value in given.items() if name in known})
        return masks

    @can_return_tuple
    def forward(
        self,
        input_ids: Optional[torch.LongTensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_values: Optional[Cache] = None,
        inputs_embeds: Optional[torch.FloatTensor] = None,
        use_cache: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        output_router_logits: Optional[bool] = None,
        cache: Optional[Cache] = None,
        **kwargs,
    ) -> MoeModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected either input_ids or inputs_embeds")
        past_key_values = cache if past_key_values is None else past_key_values
        kwargs.pop("cache_position", None)  # 4.57 says it, 5.x warns about models that ask for it, the cache knows
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        factor = self.config.embedding_multiplier
        if factor is not None:
            # Gemma rounds the root of the width to the dtype of the embeddings; other classes multiply by Python's number.
            is_root = factor == self.config.hidden_size**0.5
            x = x * (torch.tensor(factor, dtype=x.dtype, device=x.device) if is_root else factor)
        # Recomputing a block under gradient checkpointing would write to the cache a second time.
        caching = self.config.use_cache if use_cache is None else use_cache
        if caching and past_key_values is None and not (self.gradient_checkpointing and self.training):
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        masks = self.masks(x, attention_mask, past_key_values, position_ids)
        angles = {kind: rotary_angles(self.config.of_kind(kind), position_ids) for kind in masks}
        scale = query_scale(self.config, position_ids)

        hidden_states, router_logits = [], []
        for layer, (block, kind) in enumerate(zip(self.layers, self.config.layer_types)):
            hidden_states.append(x)
            x, logits = block(
                x, attention_mask=masks[kind], angles=angles[kind] if self.config.rotates(layer) else None,
                query_scale=scale, past_key_values=past_key_values, **kwargs,
            )  # fmt: skip
            if logits is not None:
                router_logits.append(logits)
        x = self.norm(x)
        hidden_states.append(x)
        want_hidden = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        want_logits = self.config.output_router_logits if output_router_logits is None else output_router_logits
        return MoeModelOutputWithPast(
            last_hidden_state=x,
            **{CACHE: past_key_values},
            hidden_states=tuple(hidden_states) if want_hidden else None,
            router_logits=tuple(router_logits) if want_logits else None,
        )


def router_losses(router_logits, top_k, real_tokens=None, biases=None):
    """Load-balancing and z-loss, each summed over layers (paper eq. 2); feed-forward routers only (paper §3.3).

    `real_tokens` `[b · s]` leaves padding out; `biases` are those of the choice, one (or None) a router. f is the share of tokens that chose an expert: a count, without gradient.
    """
    balance = z = 0.0
    for logits, bias in zip(router_logits, biases or [None] * len(router_logits)):
        if real_tokens is not None:
            logits = logits[real_tokens]
        experts = logits.shape[-1]
        gates = logits.softmax(dim=-1)
        chosen = F.one_hot(choose(gates.detach(), top_k, bias), experts).sum(dim=1)
        tokens = max(logits.shape[0], 1)  # a rank may hold padding only
        balance = balance + experts * (chosen.sum(dim=0) * gates.sum(dim=0)).sum() / tokens**2
        z = z + logits.logsumexp(dim=-1).pow(2).sum() / tokens
    return balance, z


class BamForCausalLM(BamPreTrainedModel, GenerationMixin):
    _tied_weights_keys = ["lm_head.weight"] if TRANSFORMERS_4 else {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.model = BamModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.head_bias)
        self.post_init()

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        """Forgets the cache where the text outgrows the original context of longrope, which rotates all its keys anew."""
        cache = kwargs.get(CACHE)
        seen = cache.get_seq_length() if cache is not None else 0
        if any(0 < seen <= context < input_ids.shape[1] for context in self.config.original_contexts()):
            kwargs[CACHE] = None
            if "next_sequence_length" in kwargs:  # 5.x
                kwargs["next_sequence_length"] = None
        return super().prepare_inputs_for_generation(input_ids, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Optional[torch.LongTensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        position_ids: Optional[torch.LongTensor] = None,
        past_key_values: Optional[Cache] = None,
        inputs_embeds: Optional[torch.FloatTensor] = None,
        labels: Optional[torch.LongTensor] = None,
        use_cache: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        output_router_logits: Optional[bool] = None,
        logits_to_keep: Union[int, torch.Tensor] = 0,
        num_items_in_batch: Optional[torch.Tensor] = None,
        cache: Optional[Cache] = None,
        **kwargs,
    ) -> MoeCausalLMOutputWithPast:
        """With `labels`, `loss` is next-token loss + `aux_loss`, and `aux_loss` the weighted router losses in it."""
        want_logits = self.config.output_router_logits if output_router_logits is None else output_router_logits
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, cache=cache, inputs_embeds=inputs_embeds, use_cache=use_cache,
            output_hidden_states=output_hidden_states, output_router_logits=want_logits or labels is not None,
            return_dict=True, **kwargs,
        )  # fmt: skip
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep])
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        if self.config.logits_divisor is not None:
            logits = logits / self.config.logits_divisor
        logits = soft_capped(logits, self.config.final_logit_softcapping)

        loss = aux_loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items_in_batch,
                **kwargs,
            )  # fmt: skip
            real_tokens = None
            if attention_mask is not None and attention_mask.dim() == 2:
                real_tokens = attention_mask[:, -labels.shape[1] :].flatten().bool()
            mixtures = [block.mlp for block in self.model.layers if isinstance(block.mlp, BamMixture)]
            biases = [mixture.router.choice_bias for mixture in mixtures]
            balance, z = router_losses(outputs.router_logits, self.config.num_experts_per_tok, real_tokens, biases)
            aux_loss = self.config.router_aux_loss_coef * balance + self.config.router_z_loss_coef * z
            if num_items_in_batch is not None:
                # `Trainer` sums the losses of accumulated batches: this batch's share, as in the next-token loss.
                aux_loss = aux_loss * (labels != -100).sum() / num_items_in_batch
            loss = loss + aux_loss
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            **{CACHE: outputs.get(CACHE)},
            hidden_states=outputs.hidden_states,
            router_logits=outputs.router_logits if want_logits else None,
        )
