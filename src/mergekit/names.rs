//! Names that mergekit's files use, for both kinds of files and for errors about them.

/// The merge method that bam-convert has.
pub(super) const LINEAR: &str = "linear";

/// Merge methods that only mergekit has.
pub(super) const OTHER_METHODS: [&str; 21] = [
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "core_space",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "karcher",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "ramplus_tl",
    "sce",
    "slerp",
    "task_arithmetic",
    "task_swapping",
    "ties",
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
