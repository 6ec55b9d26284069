//! The trainable parameters of a model.

use candle_core::Var;

use crate::family::{Architecture, Role, RouterBias, TensorSpec};
use crate::model::CausalLm;

/// One trainable parameter.
#[derive(Debug)]
pub(super) struct Trained {
    pub(super) spec: TensorSpec,
    pub(super) var: Var,
}

impl Trained {
    /// Whether it is a router's, which has a learning rate of its own.
    pub(super) fn is_router(&self) -> bool {
        is_router(&self.spec)
    }

    /// Whether it balances the load of feed-forward experts, and follows that instead of a gradient.
    pub(super) fn balances(&self, architecture: &Architecture) -> bool {
        balances(&self.spec, architecture)
    }

    /// Whether weight decay applies: to matrices, but not to biases and norms.
    pub(super) fn decays(&self) -> bool {
        decays(&self.spec)
    }
}

/// Whether a parameter is a router's.
pub(super) fn is_router(spec: &TensorSpec) -> bool {
    matches!(spec.role, Role::FfnRouter | Role::AttentionRouter)
}

/// Whether weight decay applies to a parameter.
pub(super) fn decays(spec: &TensorSpec) -> bool {
    !spec.role.is_norm() && !spec.bias && spec.shape.len() > 1
}

/// Whether a parameter is a bias that only takes part in the choice of experts.
pub(super) fn balances(spec: &TensorSpec, architecture: &Architecture) -> bool {
    let choice = architecture
        .mixture
        .as_ref()
        .is_some_and(|mixture| mixture.router_bias == RouterBias::Choice);
    choice && spec.role == Role::FfnRouter && spec.bias
}

/// All trainable parameters, in the order of their names.
#[derive(Debug)]
pub(super) struct Parameters {
    pub(super) all: Vec<Trained>,
    /// Numbers of the parameters of each layer.
    of_layer: Vec<Vec<usize>>,
    /// Numbers of the parameters outside the layers.
    outside: Vec<usize>,
}

impl Parameters {
    pub(super) fn of(model: &CausalLm) -> Self {
        let trained = |(_, parameter): (&str, &crate::model::Parameter)| {
            Some(Trained {
                spec: parameter.spec.clone(),
                var: parameter.var()?.clone(),
            })
        };
        let all: Vec<Trained> = model.params().iter().filter_map(trained).collect();
        let (mut of_layer, mut outside) = (vec![Vec::new(); model.layers()], Vec::new());
        for (number, parameter) in all.iter().enumerate() {
            match parameter.spec.layer {
                Some(layer) => of_layer[layer as usize].push(number),
                None => outside.push(number),
            }
        }
        Self {
            all,
            of_layer,
            outside,
        }
    }

    /// Whether the input embedding is among them.
    pub(super) fn embedding(&self) -> bool {
        self.outside
            .iter()
            .any(|number| self.all[*number].spec.role == Role::Embedding)
    }

    /// The first layer that has any; the number of layers where none has.
    pub(super) fn first_layer(&self) -> usize {
        self.of_layer
            .iter()
            .position(|numbers| !numbers.is_empty())
            .unwrap_or(self.of_layer.len())
    }
}
