//! Rotary positions in a `config.json`: which layers rotate, and how each kind of layer does.

use serde_json::{Map, Value, json};

use super::config_error::ORIGINAL;
use super::keys::Field;
use super::rope::longrope_factor;
use super::rope_place::LAYER_KINDS;
use super::spelling::same_value;
use super::write::ConfigWriter;

/// The kinds of layers, as `rope_parameters` names them.
const FULL: &str = LAYER_KINDS[0];
const SLIDING: &str = LAYER_KINDS[1];

impl ConfigWriter<'_> {
    /// Says the layers of a BAM that rotate, where not all do.
    pub(super) fn rope_layers(&mut self) {
        if !self.of.rope_layers.is_all() || self.contains("rope_layers") {
            self.put("rope_layers", json!(self.of.rope_layers));
        }
    }

    /// Says the rotary positions with every value that a reader would infer otherwise, as `rope_parameters` and `rope_theta`.
    ///
    /// There is an object for each kind of layer where kinds rotate differently, or the family expects it.
    pub(super) fn rope(&mut self) {
        let of = self.of;
        let expected = self.family.keys.has(Field::RopeLocalTheta) && !self.family.says_layouts();
        let by_kind = expected || of.window_rope.is_some();
        let outer = self.json.get("rope_theta").cloned();
        let said = |json: &Map<String, Value>, kind: Option<&str>| {
            let object = json.get("rope_parameters")?;
            let object = kind.map_or(Some(object), |kind| object.get(kind))?;
            object.as_object().cloned()
        };

        let full = said(&self.json, by_kind.then_some(FULL)).unwrap_or_default();
        let mut full = self.rope_values(of.rope_theta, &of.rope_scaling, &full, outer.as_ref());
        self.query_scale(&mut full);
        let theta = full["rope_theta"].clone();
        let original = full.get(ORIGINAL).cloned();
        if let Some(original) = original.filter(|_| self.family.says(ORIGINAL)) {
            self.without_implied(&mut full, &original);
            self.put(ORIGINAL, original);
        }
        if !by_kind {
            self.put(self.family.theta_name(), theta);
            self.put("rope_parameters", Value::Object(full));
            return;
        }
        let sliding = said(&self.json, Some(SLIDING)).unwrap_or_default();
        let (base, scaling) = match &of.window_rope {
            Some(rope) => (rope.theta, &rope.scaling),
            None => (of.rope_theta, &of.rope_scaling),
        };
        let sliding = self.rope_values(base, scaling, &sliding, None);
        self.put("rope_theta", theta);
        self.put(
            "rope_parameters",
            json!({ (FULL): full, (SLIDING): sliding }),
        );
    }

    /// Leaves out the factor on cosines and sines where the class takes the same one: Phi-3's has no place for it in transformers 4.
    fn without_implied(&self, values: &mut Map<String, Value>, original: &Value) {
        let implied = self.of.max_position_embeddings.zip(original.as_f64());
        let implied = implied.map(|(longest, original)| {
            let factor = longest as f64 / original;
            longrope_factor(factor, original)
        });
        let said = values.get("attention_factor").and_then(Value::as_f64);
        if said.is_some() && said == implied {
            values.shift_remove("attention_factor");
        }
    }

    /// Says the factor on queries where the family has it in the object of rotary positions. Its class needs both numbers there.
    fn query_scale(&self, values: &mut Map<String, Value>) {
        for field in [Field::QueryScaleBeta, Field::QueryScaleContext] {
            let name = self.family.keys[field].name().unwrap_or_default();
            let Some(name) = name.strip_prefix("rope_parameters.") else {
                continue;
            };
            let value = match self.value(field) {
                Value::Null if values.contains_key(name) => continue,
                Value::Null => json!(self.of.max_position_embeddings),
                value => value,
            };
            values.insert(name.to_owned(), value);
        }
    }

    /// The values of one rotation in the order of `said`, with its base as `said` or else `outer` spells it.
    fn rope_values(
        &self,
        theta: f64,
        scaling: &Option<Value>,
        said: &Map<String, Value>,
        outer: Option<&Value>,
    ) -> Map<String, Value> {
        let mut parameters = Map::new();
        match scaling {
            Some(Value::Object(scaling)) => parameters.extend(scaling.clone()),
            _ => _ = parameters.insert("rope_type".to_owned(), json!("default")),
        }
        if let Some(factor) = self.of.partial_rotary_factor {
            parameters.insert("partial_rotary_factor".to_owned(), json!(factor));
        }

        // Numbers are written as the seed writes them.
        let theta = json!(theta);
        let spelled = said.get("rope_theta").or(outer);
        let spelled = spelled.filter(|spelled| same_value(spelled, &theta));
        let spelled = spelled.cloned().unwrap_or(theta);
        parameters.insert("rope_theta".to_owned(), spelled);

        let place = |key: &String| said.keys().position(|name| name == key);
        let mut sorted: Vec<_> = parameters.into_iter().collect();
        sorted.sort_by_key(|(key, _)| place(key).unwrap_or(said.len()));
        sorted.into_iter().collect()
    }
}
