//! Surgery methods: what becomes of feed-forward networks, and whether attention becomes experts too.
//!
//! A method is one file in this folder: its flags, its paper, its fit rule, its expressions and its record.
//! `METHODS` lists them. No other code knows a method by name, except for the two that tests and checks start from.

mod bam;
mod btx;
mod drop;
mod error;
mod granular;
mod interpolate;
mod networks;
mod noise;
mod rule;
mod shuffle;
mod sparse;
mod split;

use std::ffi::OsString;
use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};

pub use error::MethodError;
pub use networks::NetworkRule;
pub use rule::{ExpertPart, ExpertRule, Roster, RuleContext, SurgeryMethod, Upcycles};

use crate::Result;
use crate::error::{nearest, one_of};
use crate::family::{BAM, USUAL_TOP_K};

/// Every method, in the order of `--help`.
static METHODS: [&dyn SurgeryMethod; 9] = [
    &bam::Bam,
    &btx::Btx,
    &interpolate::Interpolate,
    &sparse::Sparse,
    &noise::Noise,
    &drop::DropUpcycling,
    &granular::Granular,
    &shuffle::Shuffle,
    &split::Split,
];

/// A method of the registry.
#[derive(Clone, Copy)]
pub struct Method(&'static dyn SurgeryMethod);

impl Method {
    /// Branch-Attend-Mix.
    pub const BAM: Self = Self(&bam::Bam);
    /// Branch-Train-MiX.
    pub const BTX: Self = Self(&btx::Btx);

    /// Every method, in the order of `--help`.
    pub fn all() -> impl Iterator<Item = Self> {
        METHODS.iter().copied().map(Self)
    }

    /// The rule for experts that the flags of a command describe.
    ///
    /// # Errors
    /// A flag of another method, and whatever [`SurgeryMethod::rule`] refuses.
    pub fn configured(self, flags: &ArgMatches) -> Result<Arc<dyn ExpertRule>> {
        self.refuse_misplaced(flags)?;
        self.rule(flags)
    }

    /// The number of experts that a token goes to where nothing says so, in a mixture of the family `target` whose experts
    /// `rule` makes.
    pub fn default_top_k(self, rule: Option<&dyn ExpertRule>, target: &str) -> u64 {
        // The experts that share a router row are one whole network.
        let of_rule = rule.map_or(1, ExpertRule::router_rows_each);
        // Other families are made for two experts a token, and some always renormalise.
        let of_target = if target == BAM { 1 } else { USUAL_TOP_K };
        self.usual_top_k().max(of_rule).max(of_target)
    }

    /// The rule for experts that `arguments` describe, as typed: `--experts=8`.
    ///
    /// # Errors
    /// As [`Self::configured`].
    pub fn parsed(
        self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Arc<dyn ExpertRule>> {
        let flags = self
            .flags(Command::new(self.name()).no_binary_name(true))
            .try_get_matches_from(arguments)
            .map_err(|error| MethodError::Arguments { error })?;

        self.rule(&flags)
    }

    /// Flags of other methods are refused rather than ignored.
    fn refuse_misplaced(self, flags: &ArgMatches) -> Result<()> {
        for flag in all_flags() {
            let id = flag.get_id();
            let is_given = flags.value_source(id.as_str()) == Some(ValueSource::CommandLine);
            if !is_given || self.has_flag(&flag) {
                continue;
            }

            let owners = Self::all()
                .filter(|method| method.has_flag(&flag))
                .map(|method| method.0.name())
                .collect();
            return Err(MethodError::Misplaced {
                flag: typed(&flag),
                method: self.0.name(),
                owners,
            }
            .into());
        }
        Ok(())
    }

    fn has_flag(self, flag: &Arg) -> bool {
        flags_of(self)
            .iter()
            .any(|own| own.get_id() == flag.get_id())
    }
}

impl Deref for Method {
    type Target = dyn SurgeryMethod;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl PartialEq for Method {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Method {}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || METHODS.iter().map(|method| method.name());
        Self::all()
            .find(|method| method.name() == text)
            .ok_or_else(|| {
                let near = nearest(text, known())
                    .map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                format!("expected {}, found `{text}`{near}", one_of(known()))
            })
    }
}

/// The flags of all methods, each once, in the order of the registry.
pub fn all_flags() -> Vec<Arg> {
    let mut flags: Vec<Arg> = Vec::new();
    for flag in Method::all().flat_map(flags_of) {
        if !flags.iter().any(|known| known.get_id() == flag.get_id()) {
            flags.push(flag);
        }
    }
    flags
}

/// The flags of one method.
pub fn flags_of(method: Method) -> Vec<Arg> {
    // The command that shows the flags decides where they stand in its help.
    let command = Command::new(method.name()).next_display_order(None);
    method.flags(command).get_arguments().cloned().collect()
}

/// A flag as one types it.
pub fn typed(flag: &Arg) -> String {
    format!("--{}", flag.get_long().unwrap_or_default())
}

/// The methods that `fits` chooses, as words: "`bam`, `btx` or `sparse`", each in `quote`s.
pub fn alternatives(fits: impl Fn(&Method) -> bool, quote: &str) -> String {
    let mut names: Vec<String> = Method::all()
        .filter(fits)
        .map(|method| format!("{quote}{}{quote}", method.name()))
        .collect();
    let last = names.pop().unwrap_or_default();
    if names.is_empty() {
        return last;
    }
    format!("{} or {last}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_list_every_method_with_its_flags_and_defaults() {
        let docs = include_str!("../../../docs/reference/methods.md");
        let table: Vec<&str> = docs
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        for method in Method::all() {
            let name = format!("`{}`", method.name());
            let rows: Vec<&&str> = table.iter().filter(|row| row.contains(&name)).collect();
            assert!(
                !rows.is_empty(),
                "docs/reference/methods.md has no row for {name}"
            );
            for flag in flags_of(method) {
                // Both are described in docs/reference/settings-files.md, for mergekit's keys of these names.
                if ["noise_scale", "residual_scale"].contains(&flag.get_id().as_str()) {
                    continue;
                }
                let flag = typed(&flag);
                assert!(
                    rows.iter().any(|row| row.contains(&format!("`{flag}"))),
                    "the row of {name} in docs/reference/methods.md lacks {flag}"
                );
            }
        }
    }

    #[test]
    fn names_and_shared_flags_are_unambiguous() {
        let mut help = std::collections::BTreeMap::new();
        for (number, method) in Method::all().enumerate() {
            let other = Method::all().position(|other| other.name() == method.name());
            assert_eq!(other, Some(number), "two methods are called {method:?}");
            for flag in flags_of(method) {
                let text = flag.get_help().map(ToString::to_string);
                let known = help.entry(flag.get_id().clone()).or_insert(text.clone());
                assert_eq!(*known, text, "two flags are called {}", typed(&flag));
            }
        }
    }
}
