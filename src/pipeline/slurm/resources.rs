//! What stages ask of Slurm: `slurm:` at the top of a recipe, and in a stage, which wins.

use std::collections::BTreeMap;
use std::path::Path;

use serde_saphyr::Spanned;

use crate::Result;
use crate::checkpoint::yaml::place;
use crate::pipeline::expand::Scope;
use crate::pipeline::lines::text;
use crate::pipeline::recipe_error::RecipeError;
use crate::pipeline::yaml::{Node, unknown_key, wrong_kind};

/// The key of a recipe and of a stage.
pub(in crate::pipeline) const SLURM: &str = "slurm";
/// Its keys, each with the flag of `sbatch` that it is.
pub(in crate::pipeline) const FLAGS: [(&str, &str); 11] = [
    ("account", "account"),
    ("constraint", "constraint"),
    ("cpus", "cpus-per-task"),
    ("gpus", "gpus"),
    ("gpus-per-node", "gpus-per-node"),
    ("mem", "mem"),
    ("nodes", "nodes"),
    ("partition", "partition"),
    ("qos", "qos"),
    ("reservation", "reservation"),
    ("time", "time"),
];

/// Keys with their values.
pub(in crate::pipeline) type Resources = BTreeMap<&'static str, String>;

/// Adds what the recipe says at `node` to `resources`, names replaced.
pub(in crate::pipeline) fn read(
    recipe: &Path,
    node: &Spanned<Node>,
    scope: &Scope,
    resources: &mut Resources,
) -> Result<()> {
    let Node::Map(entries) = &node.value else {
        return Err(wrong_kind(recipe, node, "keys with values"));
    };
    for (key, value) in entries {
        let Some((known, _)) = FLAGS.iter().find(|(known, _)| *known == key.value) else {
            let known: Vec<&str> = FLAGS.iter().map(|(known, _)| *known).collect();
            return Err(unknown_key(recipe, key, &format!("`{SLURM}`"), &known));
        };
        let Node::Scalar(Some(words)) = &value.value else {
            let error = RecipeError::OneValue {
                at: place(recipe, value.referenced),
                key: (*known).to_owned(),
                found: value.value.kind().into(),
            };
            return Err(error.into());
        };
        let words = text(recipe, value.referenced, words, scope)?;
        if words.is_empty() || !fits_directive(&words) {
            let error = RecipeError::Directive {
                at: place(recipe, value.referenced),
                key: known,
                found: words,
            };
            return Err(error.into());
        }
        resources.insert(known, words);
    }
    Ok(())
}

/// Whether a text in double quotes means itself in a directive. Slurm has its own rules there: a backslash takes the
/// next character as it is, and a line break ends the directive.
pub(super) fn fits_directive(text: &str) -> bool {
    !text.chars().any(|c| c.is_control() || "\"\\#".contains(c))
}
