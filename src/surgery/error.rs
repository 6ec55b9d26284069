//! Why a request for surgery makes no sense: one variant per broken rule, and what to do next.
//!
//! Models that do not fit together are in `fit_error.rs`, plans that cannot be computed in `plan_error.rs`, outputs of another
//! form in `export_error.rs`, flags of methods in `methods/error.rs`.

use std::borrow::Cow;
use std::path::PathBuf;

use super::names::SEED;
use super::names::SHARED;
use crate::error::{ErrorPlace, nearest};

/// A rule that a request for surgery breaks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurgeryError {
    // ---- names
    /// A request without models.
    #[error("nothing to {action}: expected {expected}")]
    NoModels {
        /// The verb.
        action: &'static str,
        /// The models that it needs.
        expected: &'static str,
    },
    /// An expert with an empty name.
    #[error("an expert has an empty name; expected NAME=DIR")]
    EmptyExpertName,
    /// A name that another expert has.
    #[error("the expert name `{name}` is taken; expected each name once")]
    TakenExpertName {
        /// The name.
        name: String,
        /// The names that are taken.
        taken: Vec<String>,
    },
    /// A name with a meaning of its own.
    #[error("the expert name `{name}` is reserved for {meaning}")]
    ReservedExpertName {
        /// The name.
        name: String,
        /// What it names.
        meaning: &'static str,
    },
    /// Own experts of several mixtures with one name.
    #[error("two experts are named `{name}`; expected each name once")]
    SameExpertName {
        /// The name.
        name: String,
    },
    /// A flag that names something twice.
    #[error("{flag} names {named} twice; expected {expected} once")]
    NamedTwice {
        /// The flag.
        flag: &'static str,
        /// What it names.
        named: String,
        /// What must not be named twice, with “each”.
        expected: &'static str,
    },
    /// Links to the files of a seed with adapters, which no file holds.
    #[error("{}: --link makes links to files, but the seed has adapters", path.display())]
    LinkedSum {
        /// The seed.
        path: PathBuf,
    },
    /// An expert that the mixture does not have.
    #[error("{argument}: there is no expert `{name}`")]
    UnknownExpert {
        /// The flag with its value.
        argument: String,
        /// The expert.
        name: String,
        /// The experts that can be named.
        known: Vec<String>,
    },
    /// A name that several experts have.
    #[error("{}: has {} experts called `{name}`: {}", path.display(), numbers.len(), numbers.join(", "))]
    SeveralExperts {
        /// The mixture.
        path: PathBuf,
        /// The name.
        name: String,
        /// Numbers of the experts.
        numbers: Vec<String>,
    },
    /// A branch whose name cannot be a folder's.
    #[error("--into: expected names of folders separated by commas, found `{name}`")]
    BranchName {
        /// The name.
        name: String,
    },

    // ---- scales, shared experts and layers
    /// A factor that is negative where it may not be, NaN or infinite.
    #[error("{flag} {name}={value}: expected a number that can be a factor")]
    ScaleFactor {
        /// The flag.
        flag: &'static str,
        /// The expert.
        name: String,
        /// The factor.
        value: f64,
    },
    /// A scale of an expert that is called as the shared expert is.
    #[error("`{SHARED}` may be the expert of that name or the shared expert")]
    AmbiguousShared,
    /// A shared expert that has no model.
    #[error("--shared-expert {name}: `{name}` is freshly initialised")]
    RandomSharedExpert {
        /// The expert.
        name: String,
    },
    /// A layer that the model does not have.
    #[error("--layers names layer {layer}, expected layers from 0 to {last}")]
    NoLayer {
        /// The layer.
        layer: u64,
        /// The last layer of the model.
        last: u64,
    },
    /// More layers than the model has.
    #[error("--layers {rule}:{count} asks for more than the {layers} layers")]
    ManyLayers {
        /// The rule.
        rule: &'static str,
        /// The layers it asks for.
        count: u64,
        /// The layers of the model.
        layers: u64,
    },

    // ---- routers
    /// Two files of rows.
    #[error("--router and --attention-router name two files; expected one")]
    TwoRowFiles,
    /// Two files of prompts.
    #[error("--router and --attention-router name two files; expected one")]
    TwoPromptFiles,
    /// More orthogonal rows than columns.
    #[error("{shape:?} router rows cannot be orthogonal: more experts than columns")]
    NotOrthogonal {
        /// The shape of the router.
        shape: Vec<u64>,
    },
    /// A file of rows that was not opened before it is read.
    #[error("{}: the router file is not open", path.display())]
    RouterFileClosed {
        /// The file.
        path: PathBuf,
    },
    /// A file without rows for a router.
    #[error("{}: tensor `{tensor}`: is missing, and there is no tensor `router` for all layers", path.display())]
    NoRouterRows {
        /// The file.
        path: PathBuf,
        /// The router.
        tensor: String,
    },
    /// Prompts that no rows were computed from.
    #[error("{}: holds prompts, but no rows were computed from them", path.display())]
    PromptsOnly {
        /// The file.
        path: PathBuf,
    },
    /// A router that sends all tokens to one expert.
    #[error(
        "--router zeros makes every token tie, and a top-k router then sends all to one expert"
    )]
    ZeroRouter,
    /// New router rows that choose the same tokens.
    #[error(
        "--router zeros makes the new experts tie, and a top-k router then never takes the second"
    )]
    ZeroNewRows,

    // ---- numbers of experts
    /// An average of no model.
    #[error("no dense model is left to average: --no-seed-expert without an expert")]
    NoDenseModel,
    /// More experts than any router chooses from.
    #[error("the mixture would have {experts} experts in a layer; expected at most {most}")]
    ManyExperts {
        /// Experts of a layer.
        experts: u64,
        /// The most experts.
        most: u64,
    },
    /// A mixture without an expert of a kind.
    #[error("{}: would have no {kind} expert left", path.display())]
    NoExpertLeft {
        /// The mixture.
        path: PathBuf,
        /// Feed-forward or attention.
        kind: &'static str,
    },
    /// A feed-forward expert without the attention expert that belongs to it.
    #[error("{}: has no attention expert for its feed-forward expert {expert}", path.display())]
    NoAttentionExpert {
        /// The mixture.
        path: PathBuf,
        /// Number of the feed-forward expert.
        expert: usize,
    },
    /// `--attention-top-k` for a mixture with merged attention.
    #[error("--attention-top-k has no effect: this mixture has no attention experts")]
    NoAttentionTopK,
    /// More experts a token than there are.
    #[error("{flag} {found} asks for more than the {experts} experts")]
    ManyPerToken {
        /// The flag.
        flag: &'static str,
        /// Experts a token.
        found: u64,
        /// The experts.
        experts: u64,
    },
    /// Some attention experts a token where gates are sigmoids.
    #[error(
        "--attention-top-k {found} chooses among {experts} experts, which sigmoid gates do not"
    )]
    SigmoidTopK {
        /// Attention experts a token.
        found: u64,
        /// The attention experts.
        experts: u64,
    },
    /// A mixture that keeps fewer experts than a token goes to.
    #[error("each token goes to {found} experts, but {left} would be left")]
    FewExpertsLeft {
        /// The flag that says the number.
        flag: &'static str,
        /// Experts a token.
        found: u64,
        /// Experts that the mixture keeps.
        left: u64,
    },
    /// One expert a token in a mixture that divides gates by their sum.
    #[error(
        "this mixture divides gates by their sum, and with {flag} 1 every gate is 1: the router gets no gradient"
    )]
    MixtureOfOneGate {
        /// The flag.
        flag: &'static str,
    },
    /// One expert a token in a new mixture that divides gates by their sum.
    #[error(
        "--norm-topk-prob true with --top-k 1 makes every gate 1, so the router gets no gradient"
    )]
    OneGate,
    /// Another number of models than a merge method takes.
    #[error("the method {method} takes {expected} models, the base among them, found {found}")]
    NumberOfModels {
        /// The method.
        method: &'static str,
        /// The numbers that it takes.
        expected: String,
        /// The models.
        found: usize,
    },
    /// A parameter that a merge method needs and nothing says for a tensor.
    #[error("tensor `{tensor}`: parameter `{key}`: is missing, expected a number")]
    NoParameter {
        /// The parameter.
        key: &'static str,
        /// The tensor of the output.
        tensor: String,
    },
    /// A parameter that a merge method cannot use.
    #[error("tensor `{tensor}`: parameter `{key}`: expected {expected}, found {found}")]
    Parameter {
        /// The parameter.
        key: &'static str,
        /// The tensor of the output.
        tensor: String,
        /// The values that it may have.
        expected: &'static str,
        /// Its value.
        found: String,
    },
    /// Layers that a model does not have.
    #[error("slice {slice}: layers {} to {} are asked for, but models have {layers} layers", found[0], found[1].saturating_sub(1))]
    SliceLayers {
        /// The slice, counted from 1.
        slice: usize,
        /// The first layer, and the one after the last.
        found: [u64; 2],
        /// The layers of a model.
        layers: u64,
    },
    /// A slice of several lengths.
    #[error("slice {slice}: expected {expected} layers of each model, found {found}")]
    SliceLengths {
        /// The slice, counted from 1.
        slice: usize,
        /// Layers of a model.
        found: u64,
        /// Layers of the first model.
        expected: u64,
    },
    /// A slice of nothing.
    #[error("slice {slice}: has no models, expected at least one")]
    EmptySlice {
        /// The slice, counted from 1.
        slice: usize,
    },
    /// A model that a slice has twice.
    #[error("slice {slice}: has model {model} twice, expected each model once")]
    RepeatedModel {
        /// The slice, counted from 1.
        slice: usize,
        /// The model, counted from 1.
        model: usize,
    },
    /// A slice without the base that the method starts from.
    #[error("slice {slice}: has no layers of the base, which the method starts from")]
    SliceWithoutBase {
        /// The slice, counted from 1.
        slice: usize,
    },
    /// Layers of different kinds that would become one.
    #[error("slice {slice}: layers differ in their window, rotation or experts")]
    SliceKinds {
        /// The slice, counted from 1.
        slice: usize,
    },
    /// An order of layers that a configuration cannot say.
    #[error("{}: key `{key}`: cannot say the order of these slices", path.display())]
    SliceOrder {
        /// The configuration.
        path: PathBuf,
        /// What it would say wrongly.
        key: &'static str,
    },
    /// Weights of an average that cannot be.
    #[error("the weights {weights:?} cannot be divided by their sum {sum}")]
    MergeWeights {
        /// The weights.
        weights: Vec<f64>,
        /// Their sum.
        sum: f64,
    },
}

impl SurgeryError {
    /// What to do next.
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        let advice = match self {
            Self::TakenExpertName { taken, .. } => {
                format!(
                    "name each expert differently: NAME=DIR; taken are {}",
                    taken.join(", ")
                )
            }
            Self::UnknownExpert { name, known, .. } => {
                match nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are: {}", known.join(", ")),
                }
            }
            Self::AmbiguousShared => {
                format!("name the --expert differently; `{SEED}` is the seed itself")
            }
            Self::ManyPerToken { flag, experts, .. } => format!("pass {flag} {experts} or less"),
            Self::FewExpertsLeft { flag, left, .. } => format!("pass {flag} {left} or less"),
            Self::MixtureOfOneGate { flag } => format!("pass {flag} 2 or more"),
            other => return other.fixed_hint().map(Cow::Borrowed),
        };
        Some(Cow::Owned(advice))
    }

    /// Advice without fields.
    fn fixed_hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::ReservedExpertName { .. } => "give the expert another name: NAME=DIR",
            Self::SameExpertName { .. } => "name the own expert of each mixture: NAME=DIR",
            Self::SeveralExperts { .. } => "name one by its number",
            Self::RandomSharedExpert { .. } => "name an expert that has a model, or `seed`",
            Self::LinkedSum { .. } => "leave out --link",
            Self::NoLayer { .. } => "layers are counted from 0",
            Self::TwoRowFiles => "put the rows of both into one safetensors file",
            Self::NotOrthogonal { .. } | Self::ZeroNewRows => "pass --router normal",
            Self::NoRouterRows { .. } => {
                "name the rows of each router as the output does, or give one tensor `router`"
            }
            Self::ZeroRouter => {
                "pass --router normal, or --top-k soft; --attention-router zeros is harmless"
            }
            Self::NoDenseModel => "pass --expert NAME=DIR, or keep the seed as an expert",
            Self::ManyExperts { .. } => "pass a smaller --experts, --granularity or --seed-copies",
            Self::NoExpertLeft { .. } => {
                "`bam-convert expert extract` makes a dense model of one expert"
            }
            Self::NoAttentionTopK => "leave it out",
            Self::SigmoidTopK { .. } => {
                "pass --attention-top-k soft, or make the mixture with --attention-gate softmax"
            }
            Self::OneGate => "pass --top-k 2 or more, or --norm-topk-prob false",
            Self::SliceLayers { .. } => "layers are counted from 0",
            Self::SliceLengths { .. } => "give each model of a slice as many layers as the first",
            Self::EmptySlice { .. } => "name a model and its layers, or leave the slice out",
            Self::RepeatedModel { .. } => {
                "name its folder as another model, which then has draws of its own"
            }
            Self::SliceWithoutBase { .. } => {
                "add layers of the base to the slice, or choose --method passthrough"
            }
            Self::SliceKinds { .. } => "join layers that config.json describes alike",
            Self::SliceOrder { .. } => {
                "take slices in which layers of each kind come in the order that the models have"
            }
            Self::NumberOfModels { .. } => "name models with --model, and the base with --base",
            Self::NoParameter { .. } => {
                "give it a value for all tensors, for example as a last choice without `filter`"
            }
            Self::MergeWeights { .. } => "give finite weights that do not add up to 0",
            _ => return None,
        })
    }

    /// The file or folder, and the tensor.
    pub fn place(&self) -> ErrorPlace<'_> {
        match self {
            Self::NoRouterRows { path, tensor } => ErrorPlace::of(path).with_tensor(tensor),
            Self::SliceOrder { path, key } => ErrorPlace::of(path).with_key(key),
            Self::SeveralExperts { path, .. }
            | Self::LinkedSum { path }
            | Self::RouterFileClosed { path }
            | Self::PromptsOnly { path }
            | Self::NoExpertLeft { path, .. }
            | Self::NoAttentionExpert { path, .. } => ErrorPlace::of(path),
            _ => ErrorPlace::default(),
        }
    }
}
