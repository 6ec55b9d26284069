//! Routers and experts of a mixture in a few sentences, as its configuration has them.

use super::model_card::CardModel;
use crate::family::{AttentionGate, AttentionKv, Layers, Mixture};
use crate::markdown;
use crate::table::counted;

/// Experts whose names a sentence lists.
const LISTED: usize = 12;

/// Two sentences on feed-forward and attention experts, and one more where there is a shared expert.
pub(super) fn sentences(model: &CardModel) -> Option<String> {
    let mixture = model.architecture.mixture.as_ref()?;
    let (layers, names) = (model.architecture.num_layers, &model.experts);
    let mut sentences = vec![
        feed_forward(mixture, layers, names),
        attention(mixture, layers),
    ];
    if model.has_neutral_shared_expert {
        sentences.push(
            "The format also has a shared expert; here it holds zeros and adds nothing.".to_owned(),
        );
    } else if mixture.shared_expert_intermediate_size.is_some() {
        let gate = if mixture.shared_expert_gate {
            ", weighted by a sigmoid gate"
        } else {
            ""
        };
        sentences.push(format!(
            "One more expert is shared: it gets every token{gate}."
        ));
    }
    Some(sentences.join(" "))
}

fn feed_forward(mixture: &Mixture, layers: u64, names: &[String]) -> String {
    let experts = counted(mixture.num_experts, "feed-forward expert");
    let is_numbered = names
        .iter()
        .zip(0..)
        .all(|(name, number)| *name == number.to_string());
    let named = if is_numbered || names.len() > LISTED {
        String::new()
    } else {
        format!(" ({})", markdown::text(&names.join(", ")))
    };
    let (top_k, all) = (mixture.num_experts_per_tok, mixture.num_experts);
    let gates = if top_k == all {
        "weights all of them for each token".to_owned()
    } else {
        let sum = if mixture.norm_topk_prob {
            "gates that add up to one"
        } else {
            "gates that are not normalised again"
        };
        format!("sends each token to {top_k} of them, with {sum}")
    };
    format!(
        "{} {experts}{named}; a router {gates}.",
        have(&mixture.moe_layers, layers)
    )
}

fn attention(mixture: &Mixture, layers: u64) -> String {
    let kv = match mixture.attention_kv {
        AttentionKv::Merged => {
            return "Attention is dense: it has neither experts nor a router.".to_owned();
        }
        AttentionKv::Expert => "each with keys and values of its own",
        AttentionKv::Shared => "which share keys and values",
    };
    let (top_k, all) = (
        mixture.num_attention_experts_per_tok,
        mixture.num_attention_experts,
    );
    let gates = if mixture.attention_gate == AttentionGate::Sigmoid {
        "weights each of them by a sigmoid gate of its own (soft routing)".to_owned()
    } else if top_k == all {
        "weights all of them for each token (soft routing)".to_owned()
    } else {
        format!("sends each token to {top_k} of them")
    };
    let experts = counted(all, "attention expert");
    let have = have(&mixture.attention_moe_layers, layers);
    format!("{have} {experts}, {kv}; a second router {gates}.")
}

/// The beginning of a sentence about these layers.
fn have(listed: &Layers, layers: u64) -> String {
    match listed {
        Layers::All => "Every layer has".to_owned(),
        Layers::List(listed) => {
            let numbers: Vec<String> = listed.iter().map(u64::to_string).collect();
            let (noun, verb) = if listed.len() == 1 {
                ("Layer", "has")
            } else {
                ("Layers", "have")
            };
            format!(
                "{noun} {} of {layers} (counted from 0) {verb}",
                numbers.join(", ")
            )
        }
    }
}
