//! Kinds of layers: which look back through a sliding window, and which rotate queries and keys.

use serde_json::Value;

use super::config::{Config, Found};
use super::config_error::ConfigError;
use super::format::Family;
use super::keys::Field;
use super::layout::{Layers, Rotation, all_but_each};
use super::sparse_layers::{dense_prefix, sparse_layers};
use crate::Result;

/// Kinds of layers in every list that transformers 5 opens.
const KINDS: [&str; 18] = [
    "attention",
    "chunked_attention",
    "compressed_sparse_attention",
    "conv",
    "dense",
    "full_attention",
    "heavily_compressed_attention",
    "hybrid",
    "hybrid_sliding",
    "indexed_attention",
    "linear_attention",
    "mamba",
    "minimax_m3_sparse",
    "moe",
    "reference_sliding_attention",
    "sliding_attention",
    "sparse",
    "window_attention",
];

/// What differs between the layers of a model.
pub(super) struct LayerKinds {
    /// Positions that layers with a window look back.
    pub(super) window: Option<u64>,
    /// The layers with the window; all layers in a model without a window.
    pub(super) window_layers: Layers,
    /// The layers that rotate queries and keys.
    pub(super) rope_layers: Layers,
}

impl LayerKinds {
    /// What a configuration says, and else what its class derives.
    pub(super) fn read(config: &Config, family: &Family, num_layers: u64) -> Result<Self> {
        let reader = Reader {
            config,
            family,
            num_layers,
        };
        reader.check_ignored_types()?;
        let window = reader.window()?;
        let listed = reader.rotating()?;
        let sliding = reader.sliding(window, listed.as_deref())?;
        let rotating = match (family.rotation, window, listed) {
            (Rotation::SlidingOnly, Some(_), _) => Layers::of(&reader.with_forced(&sliding)?),
            (_, _, Some(rotating)) => Layers::of(&rotating),
            (_, _, None) => Layers::All,
        };
        let window = window.filter(|_| sliding.contains(&true));
        Ok(Self {
            window,
            window_layers: window.map_or(Layers::All, |_| Layers::of(&sliding)),
            rope_layers: rotating,
        })
    }
}

/// A configuration, and the family whose keys it has.
struct Reader<'a> {
    config: &'a Config,
    family: &'a Family,
    num_layers: u64,
}

impl Reader<'_> {
    /// The window, where it is used.
    fn window(&self) -> Result<Option<u64>> {
        let keys = &self.family.keys;
        let used = self.config.flag(&keys[Field::UseSlidingWindow])?;
        if used.unwrap_or(true) {
            self.config.count(&keys[Field::SlidingWindow])
        } else {
            Ok(None)
        }
    }

    /// Refuses an ignored list of kinds that transformers 5, which wrote the file, does not open. Each class checks the list.
    fn check_ignored_types(&self) -> Result<()> {
        let (config, name) = (self.config, "layer_types");
        let is_read = self.family.keys.has(Field::LayerTypes);
        if is_read || config.transformers().is_none_or(|major| major < 5) {
            return Ok(());
        }
        let Found::Value(_, value) = config.find([name])? else {
            return Ok(());
        };
        let kinds = self.list_of_layers(name, value)?;
        let is_known = |kind: &&Value| kind.as_str().is_some_and(|kind| KINDS.contains(&kind));
        match kinds.iter().find(|kind| !is_known(kind)) {
            None => Ok(()),
            Some(kind) => {
                Err(config.unexpected(name, "kinds of layers that transformers 5 knows", kind))
            }
        }
    }

    /// Whether each layer has the window.
    fn sliding(&self, window: Option<u64>, rotating: Option<&[bool]>) -> Result<Vec<bool>> {
        let listed = match self.config.lookup(&self.family.keys[Field::LayerTypes])? {
            Found::Value(name, value) => Some((name, self.layer_types(name, value)?)),
            Found::Absent | Found::Null => None,
        };
        match (window, listed) {
            // A BAM keeps what its seed says about a window that is not used.
            (None, Some((name, sliding)))
                if sliding.contains(&true) && !self.family.says_layouts() =>
            {
                Err(ConfigError::NoWindow {
                    path: self.config.path.clone(),
                    key: name.to_owned(),
                }
                .into())
            }
            (None, _) => Ok(vec![false; self.num_layers as usize]),
            (Some(_), Some((_, sliding))) => Ok(sliding),
            (Some(_), None) => self.derived(rotating),
        }
    }

    /// Whether each layer has the window, in a model that does not list them.
    fn derived(&self, rotating: Option<&[bool]>) -> Result<Vec<bool>> {
        let (config, keys) = (self.config, &self.family.keys);
        if let (true, Some(rotating)) = (keys.has(Field::NoRopeLayers), rotating) {
            return Ok(rotating.iter().map(|rotates| !rotates).collect());
        }
        let pattern = &keys[Field::SlidingWindowPattern];
        config.not_null(pattern, "a positive integer")?;
        if let Some(period) = config.count(pattern)? {
            return self.by_period(period);
        }
        if !self.family.says_layouts() {
            config.not_null(&keys[Field::MaxWindowLayers], "a number of layers")?;
        }
        let first = match config.lookup(&keys[Field::MaxWindowLayers])? {
            Found::Absent | Found::Null => 0,
            Found::Value(name, value) => value
                .as_u64()
                .ok_or_else(|| config.wrong(name, "a number of layers", value))?,
        };
        Ok((0..self.num_layers).map(|layer| layer >= first).collect())
    }

    /// Whether each layer has the window, by its period. The first layers have a period of their own where they have no experts.
    fn by_period(&self, period: u64) -> Result<Vec<bool>> {
        let prefix = match &self.family.mixture {
            Some(keys) => dense_prefix(self.config, keys)?.min(self.num_layers),
            None => 0,
        };
        let first = match prefix {
            0 => Vec::new(),
            _ => all_but_each(prefix, self.prefix_period()?.unwrap_or(period)),
        };
        Ok([first, all_but_each(self.num_layers - prefix, period)].concat())
    }

    /// The period of the first layers that have no experts.
    fn prefix_period(&self) -> Result<Option<u64>> {
        let key = &self.family.keys[Field::PrefixWindowPattern];
        self.config.not_null(key, "a positive integer")?;
        self.config.count(key)
    }

    /// The layers that rotate where those with the window do: also those without experts, if their period is 1.
    fn with_forced(&self, sliding: &[bool]) -> Result<Vec<bool>> {
        let (Some(1), Some(keys)) = (self.prefix_period()?, &self.family.mixture) else {
            return Ok(sliding.to_vec());
        };
        let sparse = sparse_layers(self.config, self.num_layers, keys)?;
        let layers = sliding.iter().zip(sparse);
        Ok(layers
            .map(|(slides, has_experts)| *slides || !has_experts)
            .collect())
    }

    /// Whether each layer rotates, where the configuration says so.
    fn rotating(&self) -> Result<Option<Vec<bool>>> {
        let (config, keys) = (self.config, &self.family.keys);
        if let Found::Value(name, value) = config.lookup(&keys[Field::RopeLayers])? {
            let layers = Layers::parse(value, self.num_layers)
                .map_err(|unexpected| unexpected.at(&config.path, name))?;
            return Ok(Some(layers.mask(self.num_layers)));
        }
        if let Found::Value(name, value) = config.lookup(&keys[Field::NoRopeLayers])? {
            return self.flags(name, value).map(Some);
        }
        let interval = &keys[Field::NoRopeLayerInterval];
        config.not_null(interval, "a positive integer")?;
        let interval = config.count(interval)?;
        Ok(interval.map(|interval| all_but_each(self.num_layers, interval)))
    }

    /// The layers that a list of kinds calls sliding.
    fn layer_types(&self, name: &str, value: &Value) -> Result<Vec<bool>> {
        let config = self.config;
        let kinds = self.list_of_layers(name, value)?;
        let slides = |kind: &Value| match kind.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => {
                let expected = "`sliding_attention` or `full_attention`";
                Err(config.unexpected(name, expected, kind))
            }
        };
        kinds.iter().map(slides).collect()
    }

    /// A list with one entry for each layer.
    fn list_of_layers<'v>(&self, name: &str, value: &'v Value) -> Result<&'v [Value]> {
        let config = self.config;
        let Some(items) = value.as_array() else {
            return Err(config.wrong(name, "a list with one entry for each layer", value));
        };
        if items.len() as u64 != self.num_layers {
            let expected = format!("one entry for each of {} layers", self.num_layers);
            return Err(config.unexpected(name, expected, items.len()));
        }
        Ok(items)
    }

    /// A list of zeros and ones, one for each layer or more.
    fn flags(&self, name: &str, value: &Value) -> Result<Vec<bool>> {
        let config = self.config;
        let Some(flags) = value.as_array() else {
            return Err(config.wrong(name, "a list with a 0 or 1 for each layer", value));
        };
        if (flags.len() as u64) < self.num_layers {
            let expected = format!("a 0 or 1 for each of {} layers", self.num_layers);
            return Err(config.unexpected(name, expected, flags.len()));
        }
        let flag = |flag: &Value| match flag.as_u64() {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(config.unexpected(name, "a 0 or 1 for each layer", flag)),
        };
        flags
            .iter()
            .take(self.num_layers as usize)
            .map(flag)
            .collect()
    }
}
