//! The rows of the table: features of attention and feed-forward sublayers, and shapes.

use super::maker::{Features, PLAIN};
use crate::family::Activation;
use crate::model::modules::{Gates, LayerRotation};
use crate::model::router::LoadBalance;

/// The features of attention.
pub(super) fn attention_table() -> Vec<Features> {
    let experts = Features {
        experts: 3,
        top_k: 3,
        ..PLAIN
    };
    vec![
        PLAIN,
        Features {
            kv_heads: 4,
            bias: true,
            ..PLAIN
        },
        Features {
            kv_heads: 1,
            qk_norm: "head",
            interleaved: true,
            ..PLAIN
        },
        Features {
            qk_norm: "full",
            window: Some(3),
            ..PLAIN
        },
        Features {
            qk_norm: "per-head",
            mask: "documents",
            partial_rotary: true,
            ..PLAIN
        },
        Features {
            mask: "padding",
            some_frozen: true,
            ..PLAIN
        },
        Features {
            clip: Some(0.5),
            qk_norm: "head",
            ..PLAIN
        },
        Features {
            scale: Some(1.3),
            ..PLAIN
        },
        Features {
            soft_cap: Some(0.4),
            window: Some(3),
            ..PLAIN
        },
        Features {
            scale: Some(0.9),
            soft_cap: Some(1.5),
            mask: "padding",
            ..PLAIN
        },
        Features {
            qk_norm: "head, with all",
            ..PLAIN
        },
        Features {
            qk_norm: "full",
            norm_after_rotation: true,
            ..PLAIN
        },
        Features {
            qk_norm: "head",
            norm_after_rotation: true,
            partial_rotary: true,
            ..experts.clone()
        },
        Features {
            rotation: LayerRotation::None,
            window: Some(3),
            ..PLAIN
        },
        Features {
            query_scales: true,
            mask: "padding",
            qk_norm: "head",
            ..PLAIN
        },
        Features {
            query_scales: true,
            shared_kv: true,
            partial_rotary: true,
            ..experts.clone()
        },
        experts.clone(),
        Features {
            shared_kv: true,
            bias: true,
            qk_norm: "per-head",
            ..experts.clone()
        },
        Features {
            top_k: 1,
            mask: "documents",
            router_bias: "logits",
            ..experts.clone()
        },
        Features {
            top_k: 2,
            normalise: true,
            router_bias: "choice",
            window: Some(4),
            ..experts.clone()
        },
        Features {
            adapters: true,
            bias: true,
            qk_norm: "head",
            rotation: LayerRotation::None,
            ..experts.clone()
        },
        Features {
            gates: Gates::Sigmoid { scale: 0.7 },
            shared_kv: true,
            bias: true,
            router_bias: "logits",
            ..experts.clone()
        },
        Features {
            gates: Gates::Sigmoid { scale: 1.0 },
            dropped: vec![2],
            adapters: true,
            ..experts.clone()
        },
        Features {
            dropped: vec![1],
            some_frozen: true,
            bias: true,
            ..experts
        },
    ]
}

/// The features of feed-forward sublayers.
pub(super) fn feed_forward_table() -> Vec<Features> {
    let experts = Features {
        experts: 3,
        top_k: 2,
        ..PLAIN
    };
    let soft = Features {
        top_k: 3,
        ..experts.clone()
    };
    vec![
        PLAIN,
        Features {
            bias: true,
            some_frozen: true,
            ..PLAIN
        },
        Features {
            activation: Activation::Gelu,
            ..PLAIN
        },
        Features {
            gated: false,
            activation: Activation::Relu2,
            bias: true,
            ..PLAIN
        },
        experts.clone(),
        Features {
            top_k: 1,
            bias: true,
            ..experts.clone()
        },
        Features {
            normalise: true,
            shared: "plain",
            balance: LoadBalance::Soft,
            ..experts.clone()
        },
        Features {
            router_bias: "choice",
            shared: "gated",
            some_frozen: true,
            ..experts.clone()
        },
        Features {
            router_bias: "logits",
            adapters: true,
            shared: "gated",
            ..experts.clone()
        },
        Features {
            activation: Activation::GeluTanh,
            shared: "gated",
            ..experts
        },
        Features {
            balance: LoadBalance::Soft,
            bias: true,
            ..soft.clone()
        },
        Features {
            dropped: vec![0],
            shared: "plain",
            ..soft
        },
    ]
}
