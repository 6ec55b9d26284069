//! Names that mergekit's files use, for both kinds of files and for errors about them.

/// The merge method that is an average.
pub(super) const LINEAR: &str = "linear";

/// The merge methods that bam-convert has.
pub const METHODS: [&str; 9] = [
    LINEAR,
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "model_stock",
    "passthrough",
];

/// Merge methods that only mergekit has.
pub(super) const OTHER_METHODS: [&str; 13] = [
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "core_space",
    "della_linear",
    "karcher",
    "multislerp",
    "nearswap",
    "nuslerp",
    "ram",
    "ramplus_tl",
    "sce",
    "task_swapping",
];

/// Values of `gate_mode`; the first is mergekit's default.
pub(super) const GATE_MODES: [&str; 6] = [
    "hidden",
    "hidden_avg",
    "hidden_last",
    "cheap_embed",
    "random",
    "uniform_random",
];

/// Names of dtypes, as torch has them.
pub(super) const FLOATS: [&str; 4] = ["bfloat16", "float16", "float32", "float64"];
