//! Which parameters train, as a user asks for it.

use std::collections::BTreeSet;
use std::path::Path;

use glob::Pattern;

use super::error::TrainError;
use super::parameters::balances;
use super::settings::Settings;
use crate::Result;
use crate::error::nearest;
use crate::family::{Architecture, Role, TensorSpec, expert_names};

/// Words for groups of parameters.
const GROUPS: [&str; 8] = [
    "all",
    "routers",
    "experts",
    "attention-experts",
    "ffn-experts",
    "adapters",
    "norms",
    "embeddings",
];

/// One word of `--train` or `--freeze`.
enum Term {
    Group(&'static str),
    /// An expert by number, in attention and feed-forward alike.
    Expert(u64),
    Role(Role),
    Pattern(Pattern),
}

/// The names of the parameters that the settings train, of the model in `checkpoint`.
pub(super) fn trained_names(
    checkpoint: &Path,
    architecture: &Architecture,
    settings: &Settings,
) -> Result<BTreeSet<String>> {
    let experts = expert_names(checkpoint, architecture)?;
    let (balancing, specs): (Vec<TensorSpec>, Vec<TensorSpec>) = architecture
        .tensors()?
        .into_iter()
        .partition(|spec| balances(spec, architecture));
    let mut names = select(&specs, &experts, &settings.train, &settings.freeze)?;
    if settings.bias_balancing > 0.0 {
        if balancing.is_empty() {
            let path = checkpoint.to_path_buf();
            return Err(TrainError::NoRouterBias { path }.into());
        }
        names.extend(balancing.into_iter().map(|spec| spec.name));
    }
    Ok(names)
}

/// The names of the parameters among `specs` that a word of `train` holds and none of `freeze`.
///
/// A word is one of:
///
/// - a group (`all`, `routers`, `experts`, `attention-experts`, `ffn-experts`, `adapters`, `norms`, `embeddings`);
/// - `expert:` with a name out of `experts` or a number;
/// - a role as in format files (`q`, `down`, …);
/// - a pattern of tensor names (`model.layers.[01].*`).
///
/// A word that holds no parameter is an error, and so is an empty result.
pub fn select(
    specs: &[TensorSpec],
    experts: &[String],
    train: &[String],
    freeze: &[String],
) -> Result<BTreeSet<String>> {
    let matching = |flag: &'static str, words: &[String]| -> Result<BTreeSet<&str>> {
        let mut found = BTreeSet::new();
        for word in words {
            let term = Term::parse(flag, word, experts)?;
            let held = specs.iter().filter(|spec| term.holds(spec));
            let mut names = held.map(|spec| spec.name.as_str()).peekable();
            if names.peek().is_none() {
                let word = word.clone();
                return Err(TrainError::NoParameters { flag, word }.into());
            }
            found.extend(names);
        }
        Ok(found)
    };
    let (mut chosen, frozen) = (matching("--train", train)?, matching("--freeze", freeze)?);
    chosen.retain(|name| !frozen.contains(name));
    if chosen.is_empty() {
        return Err(TrainError::AllFrozen.into());
    }
    Ok(chosen.into_iter().map(str::to_owned).collect())
}

impl Term {
    fn parse(flag: &'static str, word: &str, experts: &[String]) -> Result<Self> {
        if let Some(group) = GROUPS.iter().find(|group| **group == word) {
            return Ok(Self::Group(group));
        }
        if let Some(expert) = word.strip_prefix("expert:") {
            let by_name = experts
                .iter()
                .position(|name| name == expert)
                .map(|number| number as u64);
            let by_number = || {
                expert
                    .parse()
                    .ok()
                    .filter(|number| *number < experts.len() as u64)
            };
            return by_name.or_else(by_number).map(Self::Expert).ok_or_else(|| {
                TrainError::NoExpert {
                    flag,
                    word: word.to_owned(),
                    experts: experts.to_vec(),
                }
                .into()
            });
        }
        if let Some(role) = Role::ALL.into_iter().find(|role| role.to_string() == word) {
            return Ok(Self::Role(role));
        }
        if word.contains(['*', '?', '[', '.']) {
            return Pattern::new(word).map(Self::Pattern).map_err(|source| {
                let word = word.to_owned();
                TrainError::NotPattern { flag, word, source }.into()
            });
        }
        let roles = Role::ALL.map(|role| role.to_string());
        let known = GROUPS.into_iter().chain(roles.iter().map(String::as_str));
        Err(TrainError::UnknownWord {
            flag,
            word: word.to_owned(),
            groups: &GROUPS,
            nearest: nearest(word, known).map(str::to_owned),
        }
        .into())
    }

    fn holds(&self, spec: &TensorSpec) -> bool {
        let role = spec.role.to_string();
        match self {
            Self::Expert(number) => spec.expert == Some(*number),
            Self::Role(role) => spec.role == *role,
            Self::Pattern(pattern) => pattern.matches(&spec.name),
            Self::Group("all") => true,
            Self::Group("routers") => role.ends_with("router"),
            Self::Group("adapters") => role.ends_with("adapter"),
            Self::Group("norms") => role.ends_with("norm"),
            Self::Group("embeddings") => matches!(spec.role, Role::Embedding | Role::Head),
            Self::Group(group) => {
                let feed_forward = matches!(spec.role, Role::Gate | Role::Up | Role::Down)
                    || role == "ffn_adapter";
                spec.expert.is_some()
                    && (*group == "experts" || (*group == "ffn-experts") == feed_forward)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn specs() -> Vec<TensorSpec> {
        let spec = |name: &str, role, layer, expert| TensorSpec {
            name: name.to_owned(),
            shape: vec![2, 2],
            role,
            bias: false,
            layer,
            expert,
        };
        vec![
            spec("model.embed_tokens.weight", Role::Embedding, None, None),
            spec(
                "model.layers.0.self_attn.router.weight",
                Role::AttentionRouter,
                Some(0),
                None,
            ),
            spec(
                "model.layers.0.self_attn.attention_experts.0.q_proj.weight",
                Role::Q,
                Some(0),
                Some(0),
            ),
            spec(
                "model.layers.0.self_attn.attention_experts.1.q_proj.weight",
                Role::Q,
                Some(0),
                Some(1),
            ),
            spec(
                "model.layers.0.mlp.experts.1.up_proj.weight",
                Role::Up,
                Some(0),
                Some(1),
            ),
            spec(
                "model.layers.0.input_layernorm.weight",
                Role::InputNorm,
                Some(0),
                None,
            ),
        ]
    }

    fn selected(train: &[&str], freeze: &[&str]) -> Result<usize> {
        let words = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        select(
            &specs(),
            &words(&["seed", "code"]),
            &words(train),
            &words(freeze),
        )
        .map(|names| names.len())
    }

    #[test]
    fn words_hold_what_they_say() {
        for (train, freeze, count) in [
            (&["all"][..], &[][..], 6),
            (&["routers"], &[], 1),
            (&["experts"], &[], 3),
            (&["attention-experts"], &[], 2),
            (&["ffn-experts"], &[], 1),
            (&["expert:code"], &[], 2),
            (&["expert:0"], &[], 1),
            (&["q", "norms"], &[], 3),
            (&["all"], &["embeddings", "experts"], 2),
            (&["model.layers.*.mlp.*"], &[], 1),
        ] {
            assert_eq!(
                selected(train, freeze).unwrap(),
                count,
                "{train:?} without {freeze:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let refused = |train: &[&str], freeze: &[&str]| match selected(train, freeze).unwrap_err() {
            Error::Train(error) => error,
            error => panic!("{error}"),
        };
        assert!(matches!(refused(&["all"], &["all"]), TrainError::AllFrozen));
        assert!(matches!(
            refused(&["adapters"], &[]),
            TrainError::NoParameters { flag: "--train", word } if word == "adapters"
        ));
        assert!(matches!(
            refused(&["all"], &["lm_head.*"]),
            TrainError::NoParameters { flag: "--freeze", word } if word == "lm_head.*"
        ));
        assert!(matches!(
            refused(&["expert:law"], &[]),
            TrainError::NoExpert { experts, .. } if experts == ["seed", "code"]
        ));
        assert!(matches!(
            refused(&["router"], &[]),
            TrainError::UnknownWord { nearest: Some(nearest), .. } if nearest == "routers"
        ));
    }
}
