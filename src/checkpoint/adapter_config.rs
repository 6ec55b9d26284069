//! `adapter_config.json` of PEFT: what the tensors of a LoRA adapter mean.

use std::path::{Path, PathBuf};

use fancy_regex::Regex;
use serde_json::{Map, Value};

use super::adapter_error::AdapterError;
use super::json;
use crate::Result;

/// Name of the file.
pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Keys that are read, and keys that say nothing of the sum: how the adapter was trained, and where its base is.
const KNOWN: [&str; 30] = [
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    // The tensors themselves say whether there are biases.
    "bias",
    "lora_bias",
    // It follows the kind of module, and every module of the families that we read stores `[out, in]`.
    "fan_in_fan_out",
    "init_lora_weights",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "unsloth_fixed",
];

/// Ways to begin training that leave the base as it is. All others move a part of the base into the adapter.
const PLAIN_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Steps of backtracking that a pattern may take for one name.
const MOST_STEPS: usize = 100_000;

/// The configuration of an adapter.
#[derive(Debug)]
pub(crate) struct AdapterConfig {
    path: PathBuf,
    rank: u64,
    alpha: f64,
    use_rslora: bool,
    /// Whether every module has a magnitude.
    use_dora: bool,
    /// Ranks of modules whose names match.
    ranks: Vec<(Regex, f64)>,
    alphas: Vec<(Regex, f64)>,
    target: Modules,
    excluded: Modules,
    /// Modules that are stored whole.
    saved: Vec<String>,
    layers: Option<Layers>,
}

/// Names of modules.
#[derive(Debug)]
enum Modules {
    /// The configuration does not say.
    Unsaid,
    /// Modules of these names, or whose names end with a dot and one of them.
    Named(Vec<String>),
    /// Modules whose whole name matches.
    Matching(Regex),
    /// Every linear layer.
    AllLinear,
}

/// Layers that have factors.
#[derive(Debug)]
struct Layers {
    numbers: Vec<u64>,
    /// Find the number of the layer in a name.
    patterns: Vec<Regex>,
}

impl AdapterConfig {
    /// Reads the configuration in `folder`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(ADAPTER_CONFIG);
        if !path.is_file() {
            let path = folder.to_path_buf();
            return Err(AdapterError::NotAdapter { path }.into());
        }
        let keys = Keys {
            object: json::read_object(&path)?,
            path,
        };
        keys.refuse_others()?;
        let saved = match keys.get("modules_to_save") {
            None => Vec::new(),
            Some(value) => keys.names("modules_to_save", value)?,
        };
        Ok(Self {
            rank: keys.whole("r")?,
            alpha: keys.number("lora_alpha")?,
            use_rslora: keys.is_true("use_rslora")?,
            use_dora: keys.is_true("use_dora")?,
            ranks: keys.patterns("rank_pattern")?,
            alphas: keys.patterns("alpha_pattern")?,
            target: keys.modules("target_modules")?,
            excluded: keys.modules("exclude_modules")?,
            saved,
            layers: keys.layers()?,
            path: keys.path,
        })
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The rank of a module's factors.
    pub(crate) fn rank(&self, module: &str) -> Result<u64> {
        let found = self.first(&self.ranks, "rank_pattern", module)?;
        Ok(found.map_or(self.rank, |rank| rank as u64))
    }

    /// What the product of a module's factors of this rank is multiplied with.
    pub(crate) fn scale(&self, module: &str, rank: u64) -> Result<f64> {
        let found = self.first(&self.alphas, "alpha_pattern", module)?;
        let alpha = found.unwrap_or(self.alpha);
        Ok(if self.use_rslora {
            alpha / (rank as f64).sqrt()
        } else {
            alpha / rank as f64
        })
    }

    /// Whether every module has a magnitude (DoRA).
    pub(crate) fn uses_dora(&self) -> bool {
        self.use_dora
    }

    /// Whether a module is stored whole. Modules below one that is are stored with it.
    pub(crate) fn is_saved(&self, module: &str) -> bool {
        let dotted = format!(".{module}.");
        let mut saved = self.saved.iter();
        saved.any(|saved| dotted.contains(&format!(".{saved}.")))
    }

    /// The key that leaves a module out, if one does.
    pub(crate) fn left_out(&self, module: &str) -> Result<Option<&'static str>> {
        if self.is_saved(module) {
            return Ok(Some("modules_to_save"));
        }
        if !matches!(self.excluded, Modules::Unsaid)
            && self.holds(&self.excluded, "exclude_modules", module)?
        {
            return Ok(Some("exclude_modules"));
        }
        if !self.holds(&self.target, "target_modules", module)? {
            return Ok(Some("target_modules"));
        }
        let is_listed = match (&self.layers, &self.target) {
            (Some(layers), Modules::Named(names)) if !names.iter().any(|name| name == module) => {
                let layer = layers.of(module, self)?;
                layer.is_some_and(|layer| layers.numbers.contains(&layer))
            }
            _ => true,
        };
        Ok((!is_listed).then_some("layers_to_transform"))
    }

    /// Whether the configuration says that a module has factors.
    pub(crate) fn names(&self, module: &str) -> Result<bool> {
        let says = matches!(self.target, Modules::Named(_) | Modules::Matching(_));
        Ok(says && self.left_out(module)?.is_none())
    }

    fn holds(&self, modules: &Modules, key: &str, module: &str) -> Result<bool> {
        match modules {
            Modules::Unsaid | Modules::AllLinear => Ok(true),
            Modules::Named(names) => Ok(names.iter().any(|name| {
                let before = module.strip_suffix(name.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            })),
            Modules::Matching(pattern) => self.is_match(pattern, key, module),
        }
    }

    /// The value of the first pattern that a module's name matches.
    fn first(&self, patterns: &[(Regex, f64)], key: &str, module: &str) -> Result<Option<f64>> {
        for (pattern, value) in patterns {
            if self.is_match(pattern, key, module)? {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }

    fn is_match(&self, pattern: &Regex, key: &str, module: &str) -> Result<bool> {
        let found = pattern.is_match(module);
        Ok(found.map_err(|problem| unmatched(&self.path, key, pattern.as_str(), &problem))?)
    }
}

impl Layers {
    /// The number of the layer that a module belongs to.
    fn of(&self, module: &str, config: &AdapterConfig) -> Result<Option<u64>> {
        for pattern in &self.patterns {
            let found = pattern.captures(module).map_err(|problem| {
                unmatched(&config.path, "layers_pattern", pattern.as_str(), &problem)
            })?;
            let number = found.and_then(|found| found.get(1)?.as_str().parse().ok());
            if number.is_some() {
                return Ok(number);
            }
        }
        Ok(None)
    }
}

fn unmatched(path: &Path, key: &str, pattern: &str, problem: &fancy_regex::Error) -> AdapterError {
    AdapterError::Pattern {
        path: path.to_path_buf(),
        key: key.to_owned(),
        pattern: pattern.to_owned(),
        problem: problem.to_string(),
    }
}

/// The keys of the file.
struct Keys {
    path: PathBuf,
    object: Map<String, Value>,
}

impl Keys {
    /// A value that says something.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !says_nothing(value))
    }

    /// Refuses another kind of adapter, and keys that would change the sum.
    fn refuse_others(&self) -> Result<()> {
        let kind = self.object.get("peft_type");
        if kind.and_then(Value::as_str) != Some("LORA") {
            let found = kind.map_or_else(|| "absent".to_owned(), shown);
            let path = self.path.clone();
            return Err(AdapterError::Kind { path, found }.into());
        }
        let refused = |key: &str, value: &Value| {
            Err(AdapterError::Unsupported {
                path: self.path.clone(),
                key: key.to_owned(),
                found: shown(value),
            }
            .into())
        };
        let other = |(key, value): &(&String, &Value)| {
            !KNOWN.contains(&key.as_str()) && !says_nothing(value)
        };
        if let Some((key, value)) = self.object.iter().find(other) {
            return refused(key, value);
        }
        let key = "init_lora_weights";
        match self.get(key) {
            Some(Value::String(way)) if !PLAIN_BEGINNINGS.contains(&way.as_str()) => {
                refused(key, &Value::String(way.clone()))
            }
            _ => Ok(()),
        }
    }

    fn wrong(&self, key: &str, expected: &'static str, found: &Value) -> AdapterError {
        AdapterError::Value {
            path: self.path.clone(),
            key: key.to_owned(),
            expected,
            found: shown(found),
        }
    }

    fn number(&self, key: &str) -> Result<f64> {
        let found = self.object.get(key).unwrap_or(&Value::Null);
        let number = found.as_f64();
        Ok(number.ok_or_else(|| self.wrong(key, "a number", found))?)
    }

    fn whole(&self, key: &str) -> Result<u64> {
        let found = self.object.get(key).unwrap_or(&Value::Null);
        let number = found.as_u64().filter(|number| *number > 0);
        Ok(number.ok_or_else(|| self.wrong(key, "a whole number above 0", found))?)
    }

    fn is_true(&self, key: &str) -> Result<bool> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.wrong(key, "true or false", other).into()),
        }
    }

    fn names(&self, key: &str, value: &Value) -> Result<Vec<String>> {
        let names = value.as_array().and_then(|names| {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect::<Option<Vec<_>>>()
        });
        Ok(names.ok_or_else(|| self.wrong(key, "a list of names", value))?)
    }

    fn modules(&self, key: &str) -> Result<Modules> {
        Ok(match self.get(key) {
            None => Modules::Unsaid,
            Some(Value::String(word)) if word == "all-linear" => Modules::AllLinear,
            Some(Value::String(pattern)) => {
                Modules::Matching(self.pattern(key, pattern, &format!("^(?:{pattern})$"))?)
            }
            Some(value) => Modules::Named(self.names(key, value)?),
        })
    }

    /// The patterns of an object, matched with the end of a name, as PEFT does.
    fn patterns(&self, key: &str) -> Result<Vec<(Regex, f64)>> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let object = value
            .as_object()
            .ok_or_else(|| self.wrong(key, "an object of numbers by pattern", value))?;
        let mut patterns = Vec::with_capacity(object.len());
        for (pattern, value) in object {
            let number = value.as_f64().filter(|number| *number > 0.0);
            let number = number.ok_or_else(|| self.wrong(key, "numbers above 0", value))?;
            let whole = format!(r"^(?:.*\.)?(?:{pattern})$");
            patterns.push((self.pattern(key, pattern, &whole)?, number));
        }
        Ok(patterns)
    }

    fn pattern(&self, key: &str, typed: &str, whole: &str) -> Result<Regex> {
        let made = fancy_regex::RegexBuilder::new(whole)
            .backtrack_limit(MOST_STEPS)
            .build();
        Ok(made.map_err(|problem| unmatched(&self.path, key, typed, &problem))?)
    }

    fn layers(&self) -> Result<Option<Layers>> {
        let key = "layers_to_transform";
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        let wrong = || self.wrong(key, "numbers of layers", value);
        let numbers = match value {
            Value::Array(numbers) => numbers.iter().map(Value::as_u64).collect(),
            other => other.as_u64().map(|number| vec![number]),
        };
        let numbers: Vec<u64> = numbers.ok_or_else(wrong)?;

        let key = "layers_pattern";
        let names = match self.get(key) {
            None => Vec::new(),
            Some(Value::String(name)) => vec![name.clone()],
            Some(value) => self.names(key, value)?,
        };
        let mut patterns = Vec::new();
        for name in &names {
            let whole = format!(r"^(?:.*?\.)?(?:{name})\.(\d+)\.");
            patterns.push(self.pattern(key, name, &whole)?);
        }
        if names.is_empty() {
            // The first number in a name is the number of the layer.
            patterns.push(self.pattern(key, "", r"^.*?\.[^.]*\.(\d+)\.")?);
        }
        Ok(Some(Layers { numbers, patterns }))
    }
}

/// Whether a value is what a key has that was not set.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

/// A value as an error shows it.
fn shown(value: &Value) -> String {
    /// Characters of a value that an error repeats.
    const MOST: usize = 40;
    match value {
        Value::Object(_) => "an object".to_owned(),
        other => {
            let text = other.to_string();
            match text.char_indices().nth(MOST) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}
