//! Merge methods: how several models of one shape become one.
//!
//! A method is one file in this folder: its parameters, its paper, and its expressions. `METHODS` lists them, and no other code
//! knows a method by its name but for `linear`, the default.

mod dare;
mod della;
mod linear;
mod model_stock;
mod passthrough;
mod rule;
mod slerp;
mod task_arithmetic;
mod task_vectors;
mod ties;

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;

pub use rule::{BaseModel, MergeRule, MergedPart, MergedTensor, Parameters};

use crate::error::{nearest, one_of};

/// Every method, in the order of `--help`.
static METHODS: [&dyn MergeRule; 9] = [
    &linear::Linear,
    &slerp::Slerp,
    &task_arithmetic::TaskArithmetic,
    &ties::Ties,
    &dare::DareLinear,
    &dare::DareTies,
    &della::Della,
    &model_stock::ModelStock,
    &passthrough::Passthrough,
];

/// A method of the registry.
#[derive(Clone, Copy)]
pub struct MergeMethod(&'static dyn MergeRule);

impl MergeMethod {
    /// The weighted average.
    pub const LINEAR: Self = Self(&linear::Linear);

    /// Every method, in the order of `--help`.
    pub fn all() -> impl Iterator<Item = Self> {
        METHODS.iter().copied().map(Self)
    }

    /// Names of all parameters of all methods, each once.
    pub fn all_parameters() -> Vec<&'static str> {
        let mut names: Vec<&str> = METHODS
            .iter()
            .flat_map(|method| method.of_model().iter().chain(method.of_all()).copied())
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Names of the methods that have a parameter.
    pub fn with_parameter(name: &str) -> Vec<&'static str> {
        let methods = Self::all().filter(|method| method.has(name));
        methods.map(|method| method.0.name()).collect()
    }

    /// Whether the method has a parameter of this name.
    pub fn has(self, name: &str) -> bool {
        self.of_model().contains(&name) || self.of_all().contains(&name)
    }
}

impl Deref for MergeMethod {
    type Target = dyn MergeRule;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl PartialEq for MergeMethod {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl fmt::Debug for MergeMethod {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for MergeMethod {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MergeMethod {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::all().find(|method| method.name() == text);
        found.ok_or_else(|| {
            let names = || METHODS.iter().map(|method| method.name());
            match nearest(text, names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("expected {}", one_of(names())),
            }
        })
    }
}
