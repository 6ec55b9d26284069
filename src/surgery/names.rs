//! Names that stand for a model in plans, flags and errors.

/// The seed.
pub const SEED: &str = "seed";

/// The shared expert, in noise and factors for single experts.
pub const SHARED: &str = "shared";
