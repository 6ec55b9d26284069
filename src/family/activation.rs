//! The activation of feed-forward networks.

use super::architecture::Architecture;
use super::config::Config;
use super::config_error::ConfigError;
use crate::Result;

/// The functions that configurations name in `hidden_act` and that can be computed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    /// With the error function.
    Gelu,
    /// Its approximation with the hyperbolic tangent.
    GeluTanh,
    Relu,
    /// The square of [`Self::Relu`].
    Relu2,
}

impl Activation {
    /// Every name with its meaning.
    const ALL: [(&'static str, Self); 8] = [
        ("silu", Self::Silu),
        ("swish", Self::Silu),
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_fast", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("relu", Self::Relu),
        ("relu2", Self::Relu2),
    ];

    /// The activation of that name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, activation)| *activation)
    }
}

impl Architecture {
    /// Refuses what can be described and stored, but not computed: an unknown activation, heads that cannot be rotated.
    pub(crate) fn check_computable(&self, config: &Config) -> Result<()> {
        self.activation(config)?;
        self.rotary(config).map(|_| ())
    }

    /// The activation that `hidden_act` names; `config` only names the place in errors.
    pub(crate) fn activation(&self, config: &Config) -> Result<Activation> {
        let name = self.hidden_act.as_str();
        if let Some(known) = Activation::named(name) {
            return Ok(known);
        }
        let names = Activation::ALL.map(|(name, _)| name);
        Err(ConfigError::UnknownName {
            path: config.path.clone(),
            key: "hidden_act".to_owned(),
            what: "activation",
            known: names.to_vec(),
            found: name.to_owned(),
        }
        .into())
    }

    /// Dimensions of each head that are rotated, an even number; `config` only names the place in errors.
    pub(crate) fn rotary(&self, config: &Config) -> Result<u64> {
        let rotary = (self.head_dim as f64 * self.partial_rotary_factor.unwrap_or(1.0)) as u64;
        if rotary == 0 || !rotary.is_multiple_of(2) {
            let expected = "an even number of rotated dimensions of each head";
            return Err(config.unexpected("head_dim", expected, rotary));
        }
        Ok(rotary)
    }
}
