//! Rotary positions of a model whose layers with a window rotate otherwise than the others (Gemma 3, OLMo 3).

use serde::Serialize;
use serde_json::Value;

use super::config::Config;
use super::format::Family;
use super::keys::Field;
use super::layer_kinds::LayerKinds;
use super::layout::Layers;
use super::rope::RopeContext;
use super::rope_place::{
    EVERY_LAYER, FULL_LAYERS, LAYER_KINDS, RopePlace, WINDOW_LAYERS, rope_theta,
};
use super::spelling::same_value;
use crate::Result;
use crate::checkpoint::json::kind;

/// The base of the frequencies where nothing says another.
const THETA: f64 = 10_000.0;

/// How some layers rotate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerRope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling of the frequencies with `rope_type` first; `None` for the plain RoPE.
    pub scaling: Option<Value>,
}

/// How the layers of a model rotate.
pub(super) struct Ropes {
    /// The rotation of layers that see all positions, and of all layers where they rotate in one way.
    pub(super) full: LayerRope,
    /// The rotation of layers with a window, where that is another.
    pub(super) window: Option<LayerRope>,
}

impl Ropes {
    /// What a configuration says, for a model of these kinds of layers.
    pub(super) fn read(
        config: &Config,
        family: &Family,
        kinds: &LayerKinds,
        context: &RopeContext,
    ) -> Result<Self> {
        let reader = Reader {
            config,
            family,
            context,
        };
        let has_kinds = LAYER_KINDS
            .iter()
            .any(|kind| config.at(&format!("rope_parameters.{kind}")).is_some());
        let by_kind = family.keys.has(Field::RopeLocalTheta);
        if !by_kind || family.says_layouts() && !has_kinds {
            return Ok(Self {
                full: reader.at(&EVERY_LAYER, THETA)?,
                window: None,
            });
        }
        if let Some(Value::Object(values)) = config.json.get("rope_parameters")
            && !values.is_empty()
            && !has_kinds
        {
            let expected = "an object with `full_attention` and `sliding_attention`";
            let found = kind(&Value::Object(values.clone()));
            return Err(config.unexpected("rope_parameters", expected, found));
        }
        let full = reader.at(&FULL_LAYERS, THETA)?;
        let window = reader.at(&WINDOW_LAYERS, full.theta)?;
        Ok(match (kinds.window, &kinds.window_layers) {
            (None, _) => Self { full, window: None },
            (Some(_), Layers::All) => Self {
                full: window,
                window: None,
            },
            (Some(_), Layers::List(_)) => Self {
                window: (!window.is_as(&full)).then_some(window),
                full,
            },
        })
    }
}

impl LayerRope {
    fn is_as(&self, other: &Self) -> bool {
        let scaling = |rope: &Self| rope.scaling.clone().unwrap_or_default();
        self.theta == other.theta && same_value(&scaling(self), &scaling(other))
    }
}

/// A configuration, and what its values depend on.
struct Reader<'a> {
    config: &'a Config,
    family: &'a Family,
    context: &'a RopeContext,
}

impl Reader<'_> {
    /// The rotation that is said in a place; its base is `theta` where the class has none.
    fn at(&self, place: &RopePlace, theta: f64) -> Result<LayerRope> {
        let theta = rope_theta(self.config, self.family, place)?.unwrap_or(theta);
        let scaling = self.config.rope_scaling(place, self.context)?;
        let alpha = self
            .config
            .number(&self.family.keys[Field::RopeAlpha], 0.0)?;
        match (&scaling, alpha) {
            (Some(values), Some(alpha)) if alpha > 0.0 && values["rope_type"] == "dynamic" => {
                let theta = self.stretched(theta, alpha)?;
                Ok(LayerRope {
                    theta,
                    scaling: None,
                })
            }
            _ => Ok(LayerRope { theta, scaling }),
        }
    }

    /// The base that a fixed `alpha` makes of another, which is all that it does (Hunyuan).
    fn stretched(&self, theta: f64, alpha: f64) -> Result<f64> {
        let rotary = self.context.rotary as f64;
        if self.context.rotary <= 2 {
            let expected = "more than 2 rotated dimensions of each head";
            return Err(self.config.unexpected("head_dim", expected, rotary));
        }
        Ok(theta * alpha.powf(rotary / (rotary - 2.0)))
    }
}
