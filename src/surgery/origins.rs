//! Where the parts of a mixture come from, in sentences for its card. They follow from the plan itself, so they are true for
//! every setting.

use std::collections::BTreeMap;

use super::plan::PlannedTensor;
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::family::{Architecture, AttentionKv, Role, TensorSpec};
use crate::markdown;
use crate::table::counted;

/// What a tensor is made of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// A constant that changes nothing.
    Constant,
    /// Random numbers.
    Drawn,
    /// One tensor of this source.
    One(String),
    /// The mean of tensors of these sources, in order.
    Mean(Vec<String>),
    /// Something else of these sources.
    Several(Vec<String>),
}

/// Sentences on routers, on experts that start at random, and on what is no expert.
pub(super) fn sentences(
    architecture: &Architecture,
    tensors: &[PlannedTensor],
    names: &[String],
) -> Result<String> {
    let specs = architecture.tensors()?;
    let made: Vec<(&TensorSpec, Origin)> = specs
        .iter()
        .zip(tensors)
        .map(|(spec, tensor)| (spec, Origin::of(&tensor.expression)))
        .collect();
    let is_router =
        |spec: &TensorSpec| matches!(spec.role, Role::FfnRouter | Role::AttentionRouter);

    let mut found = Vec::new();
    let routers = made
        .iter()
        .filter(|(spec, _)| is_router(spec) && !spec.bias);
    found.extend(sentence(
        "Routers",
        "are",
        routers.map(|(_, origin)| origin),
    ));
    found.extend(random_experts(&made, names));

    let outside = |spec: &TensorSpec| spec.expert.is_none() && !spec.role.only_in_mixtures();
    let shares_kv = architecture
        .mixture
        .as_ref()
        .is_some_and(|mixture| mixture.attention_kv == AttentionKv::Shared);
    let is_kv =
        |spec: &TensorSpec| shares_kv && matches!(spec.role, Role::K | Role::V | Role::KNorm);
    let kv = made.iter().filter(|(spec, _)| outside(spec) && is_kv(spec));
    found.extend(sentence(
        "Shared keys and values",
        "are",
        kv.map(|(_, origin)| origin),
    ));
    let rest = made
        .iter()
        .filter(|(spec, _)| outside(spec) && !is_kv(spec));
    found.extend(sentence(
        "Everything else",
        "is",
        rest.map(|(_, origin)| origin),
    ));
    Ok(found.join(" "))
}

/// A sentence on what a part is made of; none where it has no tensors but constants that change nothing.
fn sentence<'a>(
    part: &str,
    verb: &str,
    origins: impl Iterator<Item = &'a Origin>,
) -> Option<String> {
    let mut counts: BTreeMap<&Origin, u64> = BTreeMap::new();
    origins.for_each(|origin| *counts.entry(origin).or_default() += 1);
    if counts.len() > 1 {
        counts.remove(&Origin::Constant);
    }
    let text = match counts.iter().next() {
        None => return None,
        Some((origin, _)) if counts.len() == 1 => format!("{verb} {}", origin.words()),
        Some(_) => {
            let parts = counts.iter();
            let parts: Vec<String> = parts
                .map(|(origin, count)| format!("{} {}", counted(*count, "tensor"), origin.words()))
                .collect();
            format!("comes from several places: {}", parts.join("; "))
        }
    };
    Some(format!("{part} {text}."))
}

/// A sentence on feed-forward experts without any tensor of a model.
fn random_experts(made: &[(&TensorSpec, Origin)], names: &[String]) -> Option<String> {
    let is_random = |number: u64| {
        let own = made.iter().filter(|(spec, _)| {
            spec.expert == Some(number) && !spec.role.of_attention() && !spec.bias
        });
        let mut own = own.peekable();
        own.peek().is_some() && own.all(|(_, origin)| *origin == Origin::Drawn)
    };
    let random = names
        .iter()
        .zip(0..)
        .filter(|(_, number)| is_random(*number));
    let random: Vec<&str> = random.map(|(name, _)| name.as_str()).collect();
    let verb = if random.len() == 1 { "starts" } else { "start" };
    (!random.is_empty()).then(|| {
        let named = markdown::text(&random.join(", "));
        format!("{named} {verb} with random weights.")
    })
}

impl Origin {
    fn of(expression: &Expression) -> Self {
        let mut names = Vec::new();
        expression.for_each_copy(&mut |source, _| names.push(source.to_owned()));
        let inner = match expression {
            Expression::Cast { of } => of,
            other => other,
        };
        match inner {
            Expression::Constant { .. } | Expression::Identity => Self::Constant,
            _ if names.is_empty() => Self::Drawn,
            _ if names.iter().all(|name| *name == names[0]) => Self::One(names.remove(0)),
            Expression::Mean { .. } => Self::Mean(names),
            _ => Self::Several(names),
        }
    }

    /// What comes after "is".
    fn words(&self) -> String {
        let listed = |names: &[String]| markdown::text(&names.join(", "));
        match self {
            Self::Constant => "constant".to_owned(),
            Self::Drawn => "drawn at random".to_owned(),
            Self::One(name) => format!("taken from {}", markdown::text(name)),
            Self::Mean(names) => format!("the mean of {}", listed(names)),
            Self::Several(names) => format!("made of {}", listed(names)),
        }
    }
}
