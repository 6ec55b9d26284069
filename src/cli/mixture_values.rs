//! Values of flags that say how a mixture is made.

use bam_convert::family::{AttentionGate, AttentionKv, RouterBias};
use clap::ValueEnum;

/// Values of `--kv`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KvName {
    /// Keys and values per expert.
    Expert,
    /// One set for all experts.
    Shared,
}

impl KvName {
    /// As configurations record it.
    pub fn value(self) -> AttentionKv {
        match self {
            Self::Expert => AttentionKv::Expert,
            Self::Shared => AttentionKv::Shared,
        }
    }
}

/// Values of `--attention-gate`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AttentionGateName {
    /// The gates of a token sum to 1.
    Softmax,
    /// Each gate depends on its own expert alone.
    Sigmoid,
}

impl AttentionGateName {
    /// As configurations record it.
    pub fn value(self) -> AttentionGate {
        match self {
            Self::Softmax => AttentionGate::Softmax,
            Self::Sigmoid => AttentionGate::Sigmoid,
        }
    }
}

/// Values of flags for weights that are no expert's.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum MeanOrSeed {
    /// The average over the dense models.
    Mean,
    /// The seed's.
    Seed,
}

/// Values of `--router-bias`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RouterBiasName {
    /// Added to the logits, before the softmax.
    Logits,
    /// Added to the gates where the largest are chosen, and nowhere else.
    Choice,
}

impl RouterBiasName {
    /// As configurations record it.
    pub fn value(self) -> RouterBias {
        match self {
            Self::Logits => RouterBias::Logits,
            Self::Choice => RouterBias::Choice,
        }
    }
}
