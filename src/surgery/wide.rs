//! The attention experts of a BAM as one attention with more heads, each with the gate of its expert.

use std::collections::BTreeMap;

use super::export_error::ExportError;
use super::fit_error::FitError;
use super::model::Model;
use crate::Result;
use crate::checkpoint::expression::Expression;
use crate::family::{AttentionGate, AttentionKv, Place, Role, TensorSpec, WideAttention};

/// A BAM whose attention experts are put side by side.
pub(super) struct WideModel<'a> {
    pub(super) model: &'a Model,
    by_place: BTreeMap<Place, &'a TensorSpec>,
}

/// The attention of one of its layers.
#[derive(Clone, Copy)]
pub(super) struct WideLayer<'a> {
    layer: u64,
    /// How many heads it has.
    pub(super) wide: WideAttention,
    /// The router, where it has attention experts.
    router: Option<&'a TensorSpec>,
    /// Attention experts with keys and values of their own.
    own_keys: Option<u64>,
}

impl WideLayer<'_> {
    /// Whether it has attention experts.
    pub(super) fn has_experts(&self) -> bool {
        self.router.is_some()
    }

    /// Attention experts with queries of their own; none where the layer has one attention.
    fn experts(&self) -> Option<u64> {
        self.router.map(|_| self.wide.experts)
    }
}

impl<'a> WideModel<'a> {
    pub(super) fn new(model: &'a Model) -> Self {
        let specs = model.specs.iter();
        Self {
            model,
            by_place: specs.map(|spec| (spec.place(), spec)).collect(),
        }
    }

    /// The tensor of that place, if it is there.
    pub(super) fn get(&self, place: Place) -> Option<&'a TensorSpec> {
        self.by_place.get(&place).copied()
    }

    fn find(&self, role: Role, layer: Option<u64>, expert: Option<u64>) -> Result<&'a TensorSpec> {
        self.get((role, false, layer, expert)).ok_or_else(|| {
            FitError::NoCounterpart {
                path: self.model.source.checkpoint.path.clone(),
                tensor: role.to_string(),
            }
            .into()
        })
    }

    /// A weight as it is.
    pub(super) fn copy(
        &self,
        role: Role,
        layer: Option<u64>,
        expert: Option<u64>,
    ) -> Result<Expression> {
        let spec = self.find(role, layer, expert)?;
        Ok(self.model.source.copy(&spec.name))
    }

    /// The tensors of all experts, or the one of a layer without any.
    pub(super) fn of_experts(
        &self,
        role: Role,
        layer: u64,
        experts: Option<u64>,
    ) -> Result<Vec<Expression>> {
        let numbers: Vec<Option<u64>> = match experts {
            None => vec![None],
            Some(experts) => (0..experts).map(Some).collect(),
        };
        let copies = numbers.into_iter();
        copies
            .map(|expert| self.copy(role, Some(layer), expert))
            .collect()
    }

    /// The attention of a layer.
    pub(super) fn layer(&self, layer: u64) -> WideLayer<'a> {
        let architecture = &self.model.architecture;
        let wide = WideAttention::of(architecture, layer);
        let router = self.get((Role::AttentionRouter, false, Some(layer), None));
        let mixture = architecture.mixture.as_ref().filter(|_| router.is_some());
        let kv = mixture.map(|mixture| mixture.attention_kv);
        WideLayer {
            layer,
            wide,
            router,
            own_keys: (kv == Some(AttentionKv::Expert)).then_some(wide.experts),
        }
    }

    /// The rows of queries, keys or values of all experts.
    pub(super) fn rows(&self, of: WideLayer, role: Role) -> Result<Expression> {
        let (experts, groups) = match role {
            Role::Q => (of.experts(), of.wide.groups),
            _ => (of.own_keys, 1),
        };
        Ok(joined(self.of_experts(role, of.layer, experts)?, 0, groups))
    }

    /// The columns of the output projections of all experts.
    pub(super) fn columns(&self, of: WideLayer) -> Result<Expression> {
        let columns = self.of_experts(Role::O, of.layer, of.experts())?;
        Ok(joined(columns, 1, of.wide.groups))
    }

    /// The norm of queries or keys, which is one for all heads.
    ///
    /// # Errors
    /// Experts whose norms differ.
    pub(super) fn norm(&self, of: WideLayer, role: Role) -> Result<Expression> {
        let experts = match role {
            Role::QNorm => of.experts(),
            _ => of.own_keys,
        };
        let Some(experts) = experts else {
            return self.copy(role, Some(of.layer), None);
        };
        let first = self.find(role, Some(of.layer), Some(0))?;
        let checkpoint = &self.model.source.checkpoint;
        for expert in 1..experts {
            let other = self.find(role, Some(of.layer), Some(expert))?;
            let (a, b) = (self.model.entry(first)?, self.model.entry(other)?);
            if !checkpoint.same_bytes(a, b)? {
                return Err(ExportError::DifferentNorms {
                    path: checkpoint.path.clone(),
                    tensor: other.name.clone(),
                    first: first.name.clone(),
                    layers: self.layers_that_differ(experts)?,
                    all: self.model.architecture.num_layers,
                }
                .into());
            }
        }
        Ok(self.model.source.copy(&first.name))
    }

    /// The number of layers whose experts have different norms of queries or keys.
    fn layers_that_differ(&self, experts: u64) -> Result<u64> {
        let checkpoint = &self.model.source.checkpoint;
        let mut layers = 0;
        for layer in 0..self.model.architecture.num_layers {
            let mut differs = false;
            for role in [Role::QNorm, Role::KNorm] {
                let of = |expert| self.get((role, false, Some(layer), Some(expert)));
                let Some(first) = of(0) else { continue };
                for other in (1..experts).filter_map(of) {
                    let (a, b) = (self.model.entry(first)?, self.model.entry(other)?);
                    differs |= !checkpoint.same_bytes(a, b)?;
                }
            }
            layers += u64::from(differs);
        }
        Ok(layers)
    }

    /// The rows of the gates of all heads, `each` for a head; none where the only gate is 1.
    pub(super) fn gates(&self, of: WideLayer, each: u64) -> Option<Expression> {
        let architecture = &self.model.architecture;
        let mixture = architecture.mixture.as_ref()?;
        let logits = self.model.source.copy(&of.router?.name);
        let by_expert = match (mixture.attention_gate, of.wide.experts) {
            (AttentionGate::Sigmoid, _) => logits,
            (AttentionGate::Softmax, 1) => return None,
            (AttentionGate::Softmax, experts) => {
                // Of two experts, as the check of the format says.
                let against_other = |expert: u64| Expression::Sum {
                    of: vec![row(&logits, expert), row(&logits, experts - 1 - expert)],
                    weights: vec![1.0, -1.0],
                };
                joined((0..experts).map(against_other).collect(), 0, 1)
            }
        };
        Some(Expression::Repeat {
            of: Box::new(by_expert),
            each: architecture.num_heads / of.wide.groups * each,
            times: of.wide.groups,
        })
    }

    /// The factor on the gates of a layer, where it is not 1.
    pub(super) fn gate_scale(&self, of: WideLayer) -> Option<f64> {
        let mixture = self.model.architecture.mixture.as_ref();
        let scale = mixture.and_then(|mixture| mixture.attention_gate_scale);
        scale.filter(|_| of.router.is_some())
    }
}

/// Tensors one after another along an axis, block by block.
pub(super) fn joined(mut of: Vec<Expression>, axis: u64, blocks: u64) -> Expression {
    match of.len() {
        1 => of.swap_remove(0),
        _ => Expression::Concat { of, axis, blocks },
    }
}

fn row(of: &Expression, start: u64) -> Expression {
    Expression::Slice {
        of: Box::new(of.clone()),
        axis: 0,
        start,
        length: 1,
        blocks: 1,
    }
}

/// `by · of`.
pub(super) fn scaled(of: Expression, by: f64) -> Expression {
    let of = Box::new(of);
    Expression::Scale { of, by }
}

/// Zeros of any shape.
pub(super) fn zeros() -> Expression {
    Expression::Constant { value: 0.0 }
}
