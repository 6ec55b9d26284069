//! Mixtures against the float64 sum over experts, and the invariants of the paper's equations.

use std::collections::BTreeMap;
use std::path::Path;

use bam_convert::family::{
    Architecture, AttentionGate, AttentionKv, Config, Layers, Mixture, Role, TensorSpec, TopK,
};
use bam_convert::model::{CausalLm, Forward, LoadOptions, Overrides, Params};
use bam_convert::surgery::methods::Method;
use candle_core::{DType, Device, Tensor};

use super::naive::{Naive, Routing};
use super::{FAMILIES, Kind, difference, fixture, golden_tokens, in_f64, run, ways};

#[test]
fn mixtures_are_the_sum_over_their_experts() {
    let tokens = golden_tokens();
    for family in FAMILIES {
        for kind in Kind::all() {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().join("out");
            kind.make(family, &folder);
            let naive = Naive::open(&folder);
            let expected = naive.logits(&tokens, &Routing::default());
            for (way, options) in ways() {
                let model = CausalLm::load(&folder, &options).unwrap();
                let difference = difference(&run(&model, &tokens, &Forward::default()), &expected);
                println!("{family}, {}, {way}: {difference:.1e}", kind.name);
                assert!(
                    difference < 1e-4,
                    "{family}, {}, {way}: {difference}",
                    kind.name
                );
            }
            let f64 = CausalLm::load(&folder, &in_f64()).unwrap();
            let difference = difference(&run(&f64, &tokens, &Forward::default()), &expected);
            assert!(
                difference < 1e-5,
                "{family}, {}, f64: {difference}",
                kind.name
            );
        }
    }
}

#[test]
fn a_bias_of_the_output_projection_passes_the_adapter() {
    let tokens = golden_tokens();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("out");
    Kind {
        copies: true,
        ..Kind::PARTS
    }
    .make("llama_bias", &folder);
    let expected = Naive::open(&folder).logits(&tokens, &Routing::default());
    for (way, options) in ways() {
        let model = CausalLm::load(&folder, &options).unwrap();
        assert!(model.architecture().attention_output_bias);
        let difference = difference(&run(&model, &tokens, &Forward::default()), &expected);
        assert!(difference < 1e-4, "{way}: {difference}");
    }
}

#[test]
fn routing_can_be_changed_at_run_time() {
    let tokens = golden_tokens();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("out");
    Kind {
        kv: AttentionKv::Shared,
        ..Kind::BAM
    }
    .make("qwen3", &folder);
    let naive = Naive::open(&folder);
    let model = CausalLm::load(&folder, &LoadOptions::default()).unwrap();
    let (top_k, attention_top_k) = (Some(2), Some(1));
    for (top_k, attention_top_k, dropped) in [
        (top_k, None, vec![]),
        (None, attention_top_k, vec![]),
        (top_k, attention_top_k, vec![1]),
        (None, None, vec![0, 2]),
    ] {
        // Soft routing over what is left is as many experts as are left.
        let attention_left = attention_top_k.unwrap_or(3 - dropped.len());
        let expected = naive.logits(
            &tokens,
            &Routing {
                top_k,
                attention_top_k: Some(attention_left),
                dropped: dropped.clone(),
            },
        );
        let forward = Forward {
            overrides: Overrides {
                top_k,
                attention_top_k,
                dropped,
            },
            keep_routing: true,
            ..Forward::default()
        };
        assert!(
            difference(&run(&model, &tokens, &forward), &expected) < 1e-4,
            "{forward:?}"
        );
    }
    let mut all = Forward::default();
    all.overrides.dropped = vec![0, 1, 2];
    let error = model
        .forward(&super::ids(&tokens), None, &all)
        .expect_err("an error")
        .to_string();
    assert!(error.contains("every expert is dropped"), "{error}");
}

#[test]
fn sigmoid_gates_of_the_experts_that_are_left_grow_by_one_factor() {
    let tokens = golden_tokens();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("out");
    let kind = Kind {
        attention_gate: AttentionGate::Sigmoid,
        ..Kind::BAM
    };
    kind.make("llama", &folder);
    let model = CausalLm::load(&folder, &LoadOptions::default()).unwrap();
    let dropped = vec![1];
    let routing = Routing {
        dropped: dropped.clone(),
        ..Routing::default()
    };
    let expected = Naive::open(&folder).logits(&tokens, &routing);
    let mut forward = Forward {
        keep_routing: true,
        ..Forward::default()
    };
    forward.overrides.dropped = dropped;
    assert!(difference(&run(&model, &tokens, &forward), &expected) < 1e-4);

    // What is reported sums to 1: the share of each gate in their sum.
    let output = model.forward(&super::ids(&tokens), None, &forward).unwrap();
    for layer in &output.routing {
        let attention = layer.attention.as_ref().unwrap();
        let gates = attention
            .gates
            .squeeze(0)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let shares = attention.probabilities.squeeze(0).unwrap();
        let shares = shares.to_vec2::<f32>().unwrap();
        for (gates, shares) in gates.iter().zip(&shares) {
            let sum: f32 = gates.iter().sum();
            assert_eq!(gates[1], 0.0);
            for (gate, share) in gates.iter().zip(shares) {
                assert!((gate / sum - share).abs() < 1e-6, "{gates:?} {shares:?}");
            }
        }
    }

    forward.overrides.attention_top_k = Some(1);
    let error = model.forward(&super::ids(&tokens), None, &forward);
    let error = error.expect_err("an error");
    let hint = error.hint().unwrap_or_default();
    assert!(hint.contains("leave --attention-top-k out"), "{hint}");
    let error = error.to_string();
    assert!(error.contains("attention_gate is sigmoid"), "{error}");
}

#[test]
fn routing_is_reported() {
    let tokens = golden_tokens();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("out");
    Kind {
        top_k: TopK::Of(2),
        norm: true,
        ..Kind::BAM
    }
    .make("llama", &folder);
    let model = CausalLm::load(&folder, &LoadOptions::default()).unwrap();
    let forward = Forward {
        keep_routing: true,
        keep_hidden: true,
        ..Forward::default()
    };
    let output = model.forward(&super::ids(&tokens), None, &forward).unwrap();
    assert_eq!((output.routing.len(), output.hidden.len()), (2, 3));
    for layer in &output.routing {
        let (fed, attended) = (
            layer.feed_forward.as_ref().unwrap(),
            layer.attention.as_ref().unwrap(),
        );
        for (routing, k) in [(fed, 2), (attended, 3)] {
            assert_eq!(routing.gates.dims(), [1, tokens.len(), 3]);
            assert_eq!(routing.chosen.dims(), [1, tokens.len(), k]);
            let sums: Vec<f32> = routing
                .gates
                .sum(2)
                .unwrap()
                .flatten_all()
                .unwrap()
                .to_vec1()
                .unwrap();
            assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6));
        }
    }
}

/// The tensors of a dense fixture by what they are for, in float64.
struct Dense {
    architecture: Architecture,
    tensors: BTreeMap<(Role, bool, Option<u64>), Tensor>,
    config: Config,
}

impl Dense {
    fn open(folder: &Path) -> Self {
        let config = Config::read(folder).unwrap();
        let architecture = Architecture::of(&config).unwrap();
        let params = Params::load(folder, &architecture, &in_f64()).unwrap();
        let tensors = params
            .iter()
            .map(|(name, parameter)| {
                let spec = &parameter.spec;
                (
                    (spec.role, spec.bias, spec.layer),
                    params.tensor(name).unwrap(),
                )
            })
            .collect();
        Self {
            architecture,
            tensors,
            config,
        }
    }

    fn tensor(&self, spec: &TensorSpec) -> Option<Tensor> {
        self.tensors
            .get(&(spec.role, spec.bias, spec.layer))
            .cloned()
    }

    fn logits(&self) -> Vec<Vec<f64>> {
        self.assemble(self.architecture.clone(), |spec| self.tensor(spec).unwrap())
    }

    /// Logits of a model of `architecture` with these tensors.
    fn assemble(
        &self,
        architecture: Architecture,
        tensor: impl Fn(&TensorSpec) -> Tensor,
    ) -> Vec<Vec<f64>> {
        self.assemble_with(architecture, tensor, &Forward::default())
    }

    fn assemble_with(
        &self,
        architecture: Architecture,
        tensor: impl Fn(&TensorSpec) -> Tensor,
        forward: &Forward,
    ) -> Vec<Vec<f64>> {
        let tensors = architecture
            .tensors()
            .unwrap()
            .iter()
            .map(|spec| (spec.name.clone(), tensor(spec)))
            .collect();
        let params =
            Params::from_tensors(Path::new("assembled"), &architecture, tensors, &in_f64())
                .unwrap();
        let model = CausalLm::new(architecture, &self.config, params, &in_f64()).unwrap();
        run(&model, &golden_tokens(), forward)
    }
}

/// Router weights that differ between experts and layers.
fn router(spec: &TensorSpec) -> Tensor {
    let count = spec.shape.iter().product::<u64>();
    let values: Vec<f64> = (0..count)
        .map(|i| ((i * 7 + 3 * spec.layer.unwrap() + 1) as f64).sin())
        .collect();
    let shape: Vec<usize> = spec.shape.iter().map(|extent| *extent as usize).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn mixture(dense: &Architecture, kv: AttentionKv, top_k: u64) -> Mixture {
    Mixture {
        attention_kv: kv,
        num_experts_per_tok: top_k,
        ..Mixture::new(dense, 3)
    }
}

#[test]
fn copies_of_one_model_attend_as_it_does_for_any_router() {
    // Invariant 1, and 6 in part: with feed-forward experts in no layer only attention is routed.
    for family in FAMILIES {
        let dense = Dense::open(&fixture(family).join("seed"));
        let expected = dense.logits();
        for kv in [AttentionKv::Expert, AttentionKv::Shared] {
            let mixture = Mixture {
                moe_layers: Layers::List(vec![]),
                ..mixture(&dense.architecture, kv, 1)
            };
            let architecture = dense.architecture.upcycled(mixture);
            let logits = dense.assemble(architecture, |spec| {
                dense.tensor(spec).unwrap_or_else(|| router(spec))
            });
            assert!(difference(&logits, &expected) < 1e-10, "{family}, {kv}");
        }
    }
}

#[test]
fn averages_of_copies_are_the_dense_tensors_bit_for_bit() {
    // Invariant 1, first half, through the surgery.
    for family in FAMILIES {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("out");
        Kind {
            copies: true,
            kv: AttentionKv::Shared,
            ..Kind::BAM
        }
        .make(family, &folder);
        let dense = Dense::open(&fixture(family).join("seed"));
        let config = Config::read(&folder).unwrap();
        let architecture = Architecture::of(&config).unwrap();
        let params = Params::load(&folder, &architecture, &in_f64()).unwrap();
        for (name, parameter) in params.iter() {
            if let Some(expected) = dense.tensor(&parameter.spec) {
                let flat =
                    |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
                assert_eq!(
                    flat(&params.tensor(name).unwrap()),
                    flat(&expected),
                    "{family}: {name}"
                );
            }
        }
    }
}

#[test]
fn copies_with_gates_that_sum_to_one_are_the_dense_model() {
    // Invariant 2: soft, or top-2 renormalised; with the paper's top-1 the feed-forward is scaled by its gate.
    for family in FAMILIES {
        let dense = Dense::open(&fixture(family).join("seed"));
        let expected = dense.logits();
        for (kv, top_k, norm) in [
            (AttentionKv::Expert, 3, false),
            (AttentionKv::Shared, 2, true),
            (AttentionKv::Merged, 3, true),
            (AttentionKv::Expert, 1, false),
        ] {
            let mixture = Mixture {
                norm_topk_prob: norm,
                ..mixture(&dense.architecture, kv, top_k)
            };
            let architecture = dense.architecture.upcycled(mixture);
            let logits = dense.assemble(architecture, |spec| {
                dense.tensor(spec).unwrap_or_else(|| router(spec))
            });
            let difference = difference(&logits, &expected);
            assert!(
                (difference < 1e-10) == (top_k > 1),
                "{family}, {kv}, top {top_k}: {difference}"
            );
        }
    }
}

#[test]
fn a_mixture_that_uses_one_expert_is_that_model() {
    // Invariant 3: everything outside the experts is the law model's, and only law is left to route to.
    for family in FAMILIES {
        let models = ["seed", "code", "law"].map(|name| Dense::open(&fixture(family).join(name)));
        let expected = models[2].logits();
        let architecture = models[2].architecture.upcycled(mixture(
            &models[2].architecture,
            AttentionKv::Expert,
            1,
        ));
        let mut forward = Forward::default();
        forward.overrides.dropped = vec![0, 1];
        let tensor = |spec: &TensorSpec| {
            models[spec.expert.unwrap_or(2) as usize]
                .tensor(spec)
                .unwrap_or_else(|| router(spec))
        };
        let logits = models[2].assemble_with(architecture.clone(), tensor, &forward);
        assert!(difference(&logits, &expected) < 1e-10, "{family}");
        assert!(
            difference(&models[2].assemble(architecture, tensor), &expected) > 1e-3,
            "{family}"
        );
    }
}

#[test]
fn attention_experts_that_are_the_average_make_a_btx() {
    // Invariant 4.
    for family in FAMILIES {
        let models = ["seed", "code", "law"].map(|name| Dense::open(&fixture(family).join(name)));
        let mean = |spec: &TensorSpec| -> Option<Tensor> {
            let of = models.each_ref().map(|model| model.tensor(spec));
            let [Some(a), Some(b), Some(c)] = of else {
                return None;
            };
            Some(
                ((((a + b).unwrap() + c).unwrap()) / 3.0)
                    .unwrap()
                    .to_dtype(DType::F64)
                    .unwrap(),
            )
        };
        let tensor = |spec: &TensorSpec| match (spec.role, spec.expert) {
            (Role::Gate | Role::Up | Role::Down, Some(expert)) => {
                models[expert as usize].tensor(spec).unwrap()
            }
            _ => mean(spec).unwrap_or_else(|| router(spec)),
        };
        let of = |kv| {
            let mixture = mixture(&models[0].architecture, kv, 1);
            let mixture = Mixture {
                num_attention_experts: if kv == AttentionKv::Merged { 1 } else { 3 },
                num_attention_experts_per_tok: if kv == AttentionKv::Merged { 1 } else { 3 },
                ..mixture
            };
            models[0].assemble(models[0].architecture.upcycled(mixture), tensor)
        };
        let btx = of(AttentionKv::Merged);
        assert!(
            difference(&of(AttentionKv::Expert), &btx) < 1e-10,
            "{family}"
        );
        assert!(
            difference(&of(AttentionKv::Shared), &btx) < 1e-10,
            "{family}"
        );
    }
}

#[test]
fn a_config_that_contradicts_the_tensors_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("out");
    Kind {
        method: Method::BTX,
        ..Kind::BAM
    }
    .make("llama", &folder);
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        CausalLm::load(&folder, &LoadOptions::default())
            .expect_err("an error")
            .to_string()
    };
    let error = with("\"num_experts\": 3", "\"num_experts\": 4");
    assert!(
        error.contains("mlp.experts.3.gate_proj.weight` is missing") || error.contains("has shape"),
        "{error}"
    );
    let error = with("\"hidden_act\": \"silu\"", "\"hidden_act\": \"sulu\"");
    assert!(
        error.contains("hidden_act") && error.contains("found sulu"),
        "{error}"
    );
    let error = with(
        "\"rope_type\": \"llama3\"",
        "\"rope_type\": \"proportional\"",
    );
    assert!(
        error.contains("rope_type") && error.contains("proportional"),
        "{error}"
    );
}
