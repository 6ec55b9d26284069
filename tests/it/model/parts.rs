//! Parts of a mixture that surgery leaves out or makes neutral: shared experts, adapters, router biases, with numbers in them.

use std::collections::HashMap;
use std::path::Path;

use bam_convert::family::{Architecture, Config};
use candle_core::{Device, Tensor, safetensors};
use serde_json::json;

use super::Kind;

/// Gives the mixture in `folder` the shared expert that `kind` asks for, and draws what surgery made zero or the identity.
pub fn draw(kind: &Kind, folder: &Path) {
    let path = folder.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    if let Some((width, gate)) = kind.shared_expert {
        config["shared_expert_intermediate_size"] = json!(width);
        config["shared_expert_gate"] = json!(gate);
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let architecture = Architecture::of(&Config::read(folder).unwrap()).unwrap();
    let weights = folder.join("model.safetensors");
    let mut tensors: HashMap<String, Tensor> = safetensors::load(&weights, &Device::Cpu).unwrap();
    for (number, spec) in architecture.tensors().unwrap().into_iter().enumerate() {
        let neutral = spec.name.contains("adapter") || spec.name.contains("router.bias");
        if neutral || !tensors.contains_key(&spec.name) {
            let shape: Vec<usize> = spec.shape.iter().map(|extent| *extent as usize).collect();
            let wide = if spec.bias {
                0.3
            } else {
                0.7 / (shape[shape.len() - 1] as f32).sqrt()
            };
            let count = shape.iter().product::<usize>();
            let values = (0..count)
                .map(|i| wide * ((i * 37 + number * 101 + 5) as f32).sin())
                .collect::<Vec<_>>();
            tensors.insert(
                spec.name,
                Tensor::from_vec(values, shape, &Device::Cpu).unwrap(),
            );
        }
    }
    safetensors::save(&tensors, weights).unwrap();
}
