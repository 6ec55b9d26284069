"""Configuration of a BAM mixture: a dense model whose attention and feed-forward weights are experts.

Zhang et al., "BAM! Just Like That: Simple and Efficient Parameter Upcycling for Mixture of Experts", arXiv 2408.08274.
Read by transformers 4.57 and 5.x; the two spell a few keys differently, so both spellings are understood.
"""

import copy
import math

from transformers import PretrainedConfig, __version__

# A value: engines send this class to other processes, where the module `transformers` may lack its version.
TRANSFORMERS_4 = __version__.startswith("4.")

CHOICES = {
    "block": ("sequential", "parallel", "parallel_two_norms"),
    "norm_type": ("rms", "layer"),
    "norm_position": ("pre", "post", "sandwich"),
    "mlp_type": ("gated", "plain"),
    "qk_norm": ("none", "head_dim", "per_head", "full"),
    "attention_kv": ("expert", "shared", "merged"),
    "attention_gate": ("softmax", "sigmoid"),
}

# Keys of `rope_parameters`, where kinds of layers rotate differently.
LAYER_KINDS = ("full_attention", "sliding_attention")


class BamConfig(PretrainedConfig):
    """The seed's own keys, and those that make it a mixture.

    block: `sequential` (attention, then feed-forward), `parallel` (both read the same normalised input; paper §3.1) or
        `parallel_two_norms` (both read the same input, each through a norm of its own; GPT-NeoX).
    norm_type, norm_position: `rms` or `layer`; `pre`, `post` or `sandwich`.
    norm_offset: norms multiply by one plus their weight; norms of queries and keys do, too (Gemma).
    norm_bias: every norm has a bias, but no norm of queries and keys has one.
    mlp_type: `gated` (gate, up, down) or `plain` (up, down).
    rope_interleaved: rotary pairs are neighbours (Cohere) instead of the two halves of a head (Llama).
    qk_norm: `none`, `head_dim` (one RMS norm for all heads, Qwen3), `per_head` (a layer norm a head, Cohere) or `full` (an
        RMS norm over all heads together, OLMoE).
    qk_norm_after_rope: queries and keys are normalised after their rotation (Hunyuan).
    clip_qkv: largest magnitude of queries, keys and values (OLMoE).
    embedding_multiplier, residual_multiplier: factors on the embeddings, and on what a sublayer adds to the residual stream.
    attention_multiplier: factor on attention scores instead of `head_dim ** -0.5`.
    logits_divisor: divides the logits.
    attn_logit_softcapping, final_logit_softcapping: bounds `c` of attention scores and logits, `c * tanh(score / c)`.
    query_scale_beta, query_scale_context: queries are multiplied by `1 + beta * ln(1 + position // context)` (Ministral 3).
    rope_layers: `"all"`, or the layers that rotate queries and keys.
    rope_parameters: the rotation of all layers; or an object for each of `full_attention` and `sliding_attention`, where
        layers with a window rotate otherwise than the others.
    attention_bias, attention_output_bias, mlp_bias, head_bias: whether q/k/v, o, the feed-forward and the output embedding have
        one.
    router_bias: `True`, a bias in the logits of all routers; `"choice"`, one of feed-forward routers that counts in the
        choice of experts alone, and has no gradient.
    num_experts, num_attention_experts: experts of each kind, the seed counted.
    num_experts_per_tok, num_attention_experts_per_tok: how many a token goes to; all of them is soft routing.
    norm_topk_prob, norm_topk_prob_attention: divide the selected gates by their sum (not in the paper).
    attention_gate, attention_gate_scale: gates of attention experts are a `softmax`, or for each expert the `sigmoid` of its own
        logit times the scale; sigmoid gates need soft routing (not in the paper).
    moe_layers, attention_moe_layers: `"all"`, or the layers that have experts; the others are dense.
    attention_kv: `expert` (keys and values per expert), `shared` (one set for all), `merged` (no attention experts).
    moe_intermediate_size: inner width of one feed-forward expert; `intermediate_size` is that of a dense layer.
    shared_expert_intermediate_size, shared_expert_gate: an expert that every token goes to, and its sigmoid gate.
    moe_output_multiplier: factor on the sum of a layer's experts, the shared one among them.
    expert_adapters: a square matrix on the output of each expert ("BAM with adapters", Zhang et al. 2025).
    router_aux_loss_coef, router_z_loss_coef: weights of the load-balancing and z-loss (paper eq. 2 gives no values).
    """

    model_type = "bam"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=None,
        head_dim=None,
        hidden_act="silu",
        max_position_embeddings=2048,
        rms_norm_eps=None,
        layer_norm_eps=None,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_parameters=None,
        rope_interleaved=False,
        rope_layers="all",
        partial_rotary_factor=None,
        sliding_window=None,
        use_sliding_window=None,
        max_window_layers=None,
        layer_types=None,
        logit_scale=None,
        clip_qkv=None,
        embedding_multiplier=None,
        residual_multiplier=None,
        attention_multiplier=None,
        logits_divisor=None,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        query_scale_beta=None,
        query_scale_context=None,
        block="sequential",
        norm_type="rms",
        norm_position="pre",
        mlp_type="gated",
        qk_norm="none",
        norm_offset=False,
        norm_bias=False,
        qk_norm_after_rope=False,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        head_bias=False,
        router_bias=False,
        attention_dropout=0.0,
        initializer_range=0.02,
        use_cache=True,
        bam_version=1,
        num_experts=4,
        num_attention_experts=None,
        moe_intermediate_size=None,
        moe_layers="all",
        attention_moe_layers="all",
        attention_kv="expert",
        num_experts_per_tok=1,
        num_attention_experts_per_tok=None,
        norm_topk_prob=False,
        norm_topk_prob_attention=False,
        attention_gate="softmax",
        attention_gate_scale=1.0,
        shared_expert_intermediate_size=None,
        shared_expert_gate=False,
        moe_output_multiplier=None,
        expert_adapters=False,
        router_aux_loss_coef=0.01,
        router_z_loss_coef=0.001,
        output_router_logits=False,
        expert_names=None,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **kwargs,
    ):
        if bam_version not in (1, 2):
            raise ValueError(f"config.json: bam_version is {bam_version}, this code reads versions 1 and 2")
        self.bam_version = bam_version
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.rms_norm_eps = rms_norm_eps
        self.layer_norm_eps = layer_norm_eps
        self.logit_scale = 1.0 if logit_scale is None else logit_scale  # engines multiply by whatever is here
        self.clip_qkv = clip_qkv
        self.embedding_multiplier = embedding_multiplier
        self.residual_multiplier = residual_multiplier
        self.attention_multiplier = attention_multiplier
        self.logits_divisor = logits_divisor
        self.attn_logit_softcapping = attn_logit_softcapping
        self.final_logit_softcapping = final_logit_softcapping
        self.query_scale_beta = query_scale_beta
        self.query_scale_context = query_scale_context
        self.attention_bias = attention_bias
        self.attention_output_bias = attention_output_bias
        self.mlp_bias = mlp_bias
        self.head_bias = head_bias
        self.router_bias = router_bias
        self.attention_dropout = attention_dropout
        self.initializer_range = initializer_range
        self.use_cache = use_cache

        self.block = block
        self.norm_type = norm_type
        self.norm_position = norm_position
        self.mlp_type = mlp_type
        self.qk_norm = qk_norm
        self.norm_offset = norm_offset
        self.norm_bias = norm_bias
        self.qk_norm_after_rope = qk_norm_after_rope
        self.rope_interleaved = rope_interleaved
        self.rope_layers = rope_layers
        self.attention_kv = attention_kv
        self.attention_gate = attention_gate
        self.attention_gate_scale = 1.0 if attention_gate_scale is None else attention_gate_scale
        if router_bias not in (None, False, True, "choice"):
            raise ValueError(f"config.json: router_bias is {router_bias!r}, expected true, false or \"choice\"")
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"config.json: {key} is {getattr(self, key)!r}, expected one of {', '.join(allowed)}")

        self.num_experts = num_experts
        if num_attention_experts is None:
            num_attention_experts = 1 if attention_kv == "merged" else num_experts
        self.num_attention_experts = num_attention_experts
        self.moe_intermediate_size = moe_intermediate_size or intermediate_size
        self.moe_layers = moe_layers
        self.attention_moe_layers = attention_moe_layers
        self.num_experts_per_tok = num_experts_per_tok
        if num_attention_experts_per_tok is None:
            num_attention_experts_per_tok = num_attention_experts
        self.num_attention_experts_per_tok = num_attention_experts_per_tok
        self.norm_topk_prob = norm_topk_prob
        self.norm_topk_prob_attention = norm_topk_prob_attention
        self.shared_expert_intermediate_size = shared_expert_intermediate_size
        self.shared_expert_gate = shared_expert_gate
        self.moe_output_multiplier = moe_output_multiplier
        self.expert_adapters = expert_adapters
        self.router_aux_loss_coef = router_aux_loss_coef
        self.router_z_loss_coef = router_z_loss_coef
        self.output_router_logits = output_router_logits
        self.expert_names = expert_names
        for count, top_k in (
            ("num_experts", "num_experts_per_tok"),
            ("num_attention_experts", "num_attention_experts_per_tok"),
        ):
            if getattr(self, top_k) > getattr(self, count):
                raise ValueError(
                    f"config.json: {top_k} is {getattr(self, top_k)}, more than {count} {getattr(self, count)}"
                )

        soft = num_attention_experts_per_tok == num_attention_experts and not norm_topk_prob_attention
        if attention_gate == "sigmoid" and not soft:
            raise ValueError("config.json: attention_gate is 'sigmoid', which needs all attention experts and gates as they are")
        if attention_gate == "sigmoid" and attention_kv == "merged":
            raise ValueError("config.json: attention_gate is 'sigmoid', but attention_kv is 'merged': no attention experts")
        if not 0.0 < self.attention_gate_scale < math.inf:
            scale = self.attention_gate_scale
            raise ValueError(f"config.json: attention_gate_scale is {scale}, expected a finite number above 0")
        if query_scale_beta and (type(query_scale_context) is not int or query_scale_context < 1):
            raise ValueError(
                f"config.json: query_scale_context is {query_scale_context!r}, expected a positive integer"
                f" beside query_scale_beta {query_scale_beta}"
            )
        if query_scale_beta is not None and not math.isfinite(query_scale_beta):
            raise ValueError(f"config.json: query_scale_beta is {query_scale_beta}, expected a finite number")
        if attention_gate == "softmax" and self.attention_gate_scale != 1.0:
            raise ValueError("config.json: attention_gate_scale is for sigmoid gates, but attention_gate is 'softmax'")

        # Seeds carry a window they do not use (Qwen2), or name the layers that use it. What is not used is dropped, as
        # transformers takes any `sliding_window` it finds at its word.
        if use_sliding_window is False:
            sliding_window = None
        if sliding_window is None:
            layer_types = ["full_attention"] * num_hidden_layers
        elif layer_types is None:
            full = max_window_layers or 0  # Qwen2 and Qwen3: the layers from here on have a window
            layer_types = [
                "full_attention" if layer < full else "sliding_attention" for layer in range(num_hidden_layers)
            ]
        if len(layer_types) != num_hidden_layers:
            raise ValueError(f"config.json: layer_types has {len(layer_types)} entries for {num_hidden_layers} layers")
        self.sliding_window = sliding_window
        self.layer_types = layer_types

        def complete(rope):
            rope = dict(rope)
            rope.setdefault("rope_type", rope.pop("type", "default"))
            rope.setdefault("rope_theta", rope_theta)
            if partial_rotary_factor is not None:
                rope.setdefault("partial_rotary_factor", partial_rotary_factor)
            return rope

        rope = rope_parameters or rope_scaling or {}
        if any(kind in rope for kind in LAYER_KINDS):
            rope = {kind: complete(rope.get(kind) or {}) for kind in LAYER_KINDS}
            self.set_rope(rope["full_attention"])
            self.rope_parameters = rope
        else:
            self.set_rope(complete(rope))

        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)
        # After it: 4.57 sets these to None, and 5.x no longer has them.
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id

    def set_rope(self, rope):
        """Makes all layers rotate in one way."""
        self.rope_parameters = rope
        self.rope_theta = rope["rope_theta"]
        if "partial_rotary_factor" in rope:  # where 4.57 looks for it
            self.partial_rotary_factor = rope["partial_rotary_factor"]
        if TRANSFORMERS_4:  # 5.x has a property of that name
            self.rope_scaling = None if rope["rope_type"] == "default" else rope

    def of_kind(self, kind):
        """This configuration, in which all layers rotate as one kind of layer does."""
        if kind not in self.rope_parameters:
            return self
        own = copy.copy(self)
        own.set_rope(self.rope_parameters[kind])
        return own

    def original_contexts(self):
        """The lengths of text after which a longrope rotates otherwise."""
        kinds = [self.rope_parameters.get(kind) for kind in LAYER_KINDS]
        ropes = kinds if any(kinds) else [self.rope_parameters]
        return [rope["original_max_position_embeddings"] for rope in ropes if rope["rope_type"] == "longrope"]

    def rotates(self, layer):
        """Whether a layer rotates queries and keys."""
        return self.rope_layers == "all" or layer in self.rope_layers

    def has_experts(self, layer):
        """Whether the feed-forward of a layer is a mixture."""
        return self.moe_layers == "all" or layer in self.moe_layers

    def has_attention_experts(self, layer):
        """Whether the attention of a layer is a mixture."""
        return self.attention_kv != "merged" and (
            self.attention_moe_layers == "all" or layer in self.attention_moe_layers
        )
