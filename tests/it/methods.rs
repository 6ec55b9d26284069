//! The methods of `upcycle` that cut, shuffle, scale and draw: every tensor recomputed here from what the papers say.
//!
//! A network is a list of neurons here, whatever axis they lie on in a file. Only the generator is the library's; the
//! order of neurons, what is dropped, means and deviations are computed again (`docs/reference/methods.md`, `docs/reference/random.md`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{
    Run, Tensor, Tensors, assert_same_tensor, bam, copy_folder, edit_json, fixture, listing, mean,
    read_folder, read_json,
};
use bam_convert::surgery::random::Draws;
use safetensors::Dtype;
use serde_json::json;
use tempfile::TempDir;

const SEED: u64 = 7;
const LAYERS: u64 = 2;

/// One tensor of a network by neurons: `rows[j]` are the values of neuron `j`.
#[derive(Clone)]
struct Part {
    /// `gate_proj.weight`, …
    file_name: String,
    /// `gate`, `up` or `down`, followed by `.bias` for a bias.
    key: String,
    bias: bool,
    /// Whether neurons lie on the second axis.
    columns: bool,
    dtype: Dtype,
    rows: Vec<Vec<f64>>,
}

/// A network: its parts along neurons, and the bias of its output.
#[derive(Clone)]
struct Network {
    parts: Vec<Part>,
    output_bias: Option<Vec<f64>>,
}

impl Network {
    fn read(tensors: &Tensors, layer: u64) -> Self {
        let prefix = format!("model.layers.{layer}.mlp.");
        let mut parts = Vec::new();
        for (projection, kind) in [
            ("gate", "weight"),
            ("up", "weight"),
            ("down", "weight"),
            ("gate", "bias"),
            ("up", "bias"),
        ] {
            let file_name = format!("{projection}_proj.{kind}");
            let Some(tensor) = tensors.get(&format!("{prefix}{file_name}")) else {
                continue;
            };
            let columns = projection == "down";
            let (first, second) = (tensor.shape[0], tensor.shape.get(1).copied().unwrap_or(1));
            let values = tensor.values();
            let at = |i: usize, j: usize| values[i * second + j];
            let rows = match columns {
                false => (0..first)
                    .map(|i| (0..second).map(|j| at(i, j)).collect())
                    .collect(),
                true => (0..second)
                    .map(|j| (0..first).map(|i| at(i, j)).collect())
                    .collect(),
            };
            let bias = kind == "bias";
            let key = format!("{projection}{}", if bias { ".bias" } else { "" });
            parts.push(Part {
                file_name,
                key,
                bias,
                columns,
                dtype: tensor.dtype,
                rows,
            });
        }
        let output_bias = tensors
            .get(&format!("{prefix}down_proj.bias"))
            .map(Tensor::values);
        Self { parts, output_bias }
    }

    fn width(&self) -> usize {
        self.parts[0].rows.len()
    }

    /// The network of some neurons, in this order.
    fn take(&self, neurons: &[usize]) -> Self {
        let mut taken = self.clone();
        for part in &mut taken.parts {
            part.rows = neurons
                .iter()
                .map(|neuron| part.rows[*neuron].clone())
                .collect();
        }
        taken
    }

    fn scale_output_bias(&mut self, by: f64) {
        self.output_bias
            .iter_mut()
            .flatten()
            .for_each(|value| *value *= by);
    }

    /// The tensors as files have them, rounded to their dtype.
    fn tensors(&self, prefix: &str) -> BTreeMap<String, Tensor> {
        let mut tensors = BTreeMap::new();
        for part in &self.parts {
            let (neurons, each) = (part.rows.len(), part.rows[0].len());
            let mut values = vec![0.0; neurons * each];
            for (j, row) in part.rows.iter().enumerate() {
                for (c, value) in row.iter().enumerate() {
                    values[part.element(j, c)] = *value;
                }
            }
            let shape = match (part.bias, part.columns) {
                (true, _) => vec![neurons],
                (_, true) => vec![each, neurons],
                _ => vec![neurons, each],
            };
            tensors.insert(
                format!("{prefix}{}", part.file_name),
                Tensor::new(part.dtype, &shape, &values),
            );
        }
        if let Some(bias) = &self.output_bias {
            let tensor = Tensor::new(self.parts[0].dtype, &[bias.len()], bias);
            tensors.insert(format!("{prefix}down_proj.bias"), tensor);
        }
        tensors
    }
}

impl Part {
    /// The number of a neuron's value in the file.
    fn element(&self, neuron: usize, value: usize) -> usize {
        if self.columns {
            value * self.rows.len() + neuron
        } else {
            neuron * self.rows[0].len() + value
        }
    }

    /// Standard normal draws under a key, one for each element.
    fn normals(&self, key: &str) -> Vec<f64> {
        let mut normals = vec![0.0; self.rows.len() * self.rows[0].len()];
        Draws::new(SEED, key).normal(0, &mut normals);
        normals
    }

    /// Puts `new(old, draw)` in place of every value of these neurons.
    fn replace(&mut self, neurons: &[usize], key: &str, new: impl Fn(f64, f64) -> f64) {
        let normals = self.normals(key);
        for neuron in neurons {
            for value in 0..self.rows[*neuron].len() {
                let draw = normals[self.element(*neuron, value)];
                self.rows[*neuron][value] = new(self.rows[*neuron][value], draw);
            }
        }
    }

    /// Mean and standard deviation over these neurons, in the order of the file.
    fn moments(&self, neurons: &[usize]) -> (f64, f64) {
        let mut values: Vec<(usize, f64)> = Vec::new();
        for neuron in neurons {
            values.extend(
                self.rows[*neuron]
                    .iter()
                    .enumerate()
                    .map(|(c, value)| (self.element(*neuron, c), *value)),
            );
        }
        values.sort_by_key(|(element, _)| *element);
        let n = values.len() as f64;
        let mean = values.iter().fold(0.0, |sum, (_, value)| sum + value) / n;
        let squares = values
            .iter()
            .fold(0.0, |sum, (_, value)| sum + (value - mean) * (value - mean));
        (mean, (squares / n).sqrt())
    }
}

/// The numbers below `n` in the order of their draws.
fn order(key: &str, n: usize) -> Vec<usize> {
    let mut draws = vec![0.0; n];
    Draws::new(SEED, key).uniform(0, &mut draws);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| draws[*a].total_cmp(&draws[*b]));
    order
}

/// An expert of a layer, given the seed's network there.
type Expert<'a> = &'a dyn Fn(&Network, u64, u64) -> Network;

fn upcycle(seed: &Path, out: &Path, flags: &[&str]) -> Run {
    let mut arguments: Vec<std::ffi::OsString> = ["upcycle", "--rng-seed", "7", "--seed"]
        .into_iter()
        .map(Into::into)
        .collect();
    arguments.extend([seed.into(), "--out".into(), out.into()]);
    arguments.extend(flags.iter().map(Into::into));
    crate::common::run(arguments)
}

/// Runs a method of one seed and compares every tensor: experts as `expert` makes them in `layers`, all else the seed's.
#[track_caller]
fn check(seed: &Path, flags: &[&str], experts: u64, layers: &[u64], each: u64, expert: Expert) {
    let work = TempDir::new().unwrap();
    let outs = ["1", "3"].map(|threads| {
        let out = work.path().join(threads);
        upcycle(seed, &out, &[flags, &["--threads", threads]].concat()).ok();
        out
    });
    assert_eq!(
        listing(&outs[0]),
        listing(&outs[1]),
        "{flags:?}: one thread and three"
    );
    crate::common::against(&outs[0]).ok();
    let (found, dense) = (read_folder(&outs[0]), read_folder(seed));
    let mut expected: Tensors = dense.clone();
    for layer in layers.iter().copied() {
        let mlp = format!("model.layers.{layer}.mlp.");
        expected.retain(|name, _| !name.starts_with(&mlp));
        let network = Network::read(&dense, layer);
        for number in 0..experts {
            expected.extend(
                expert(&network, layer, number).tensors(&format!("{mlp}experts.{number}.")),
            );
        }
        // A virtual group of `each` experts shares a row.
        let (name, hidden) = (
            format!("{mlp}router.weight"),
            dense["model.norm.weight"].shape[0],
        );
        let mut rows = vec![0.0; (experts / each) as usize * hidden];
        Draws::new(SEED, &name).normal(0, &mut rows);
        let values: Vec<f64> = (0..experts)
            .flat_map(|e| rows[(e / each) as usize * hidden..][..hidden].to_vec())
            .map(|z| 0.02 * z)
            .collect();
        let shape = [experts as usize, hidden];
        expected.insert(
            name,
            Tensor::new(dense["model.norm.weight"].dtype, &shape, &values),
        );
    }
    let names = |tensors: &Tensors| tensors.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected), "{flags:?}");
    for (name, tensor) in &expected {
        assert_same_tensor(&format!("{flags:?} {name}"), &found[name], tensor);
    }
}

fn seeds() -> [PathBuf; 2] {
    [fixture("llama/seed"), fixture("llama_bias/seed")]
}

#[test]
fn sparse_upcycling_copies_in_the_layers_that_were_chosen() {
    for seed in seeds() {
        check(
            &seed,
            &["--method", "sparse", "--experts", "3"],
            3,
            &[0, 1],
            1,
            &|network, _, _| network.clone(),
        );
        let flags = [
            "--method",
            "sparse",
            "--experts",
            "2",
            "--layers",
            "every:2",
            "--top-k",
            "2",
        ];
        check(&seed, &flags, 2, &[1], 1, &|network, _, _| network.clone());
    }
}

#[test]
fn noise_is_added_everywhere_or_at_some_neurons() {
    for seed in seeds() {
        for (ratio, std) in [("1", "0.02"), ("0.3", "0.5")] {
            let flags = [
                "--method",
                "noise",
                "--experts",
                "2",
                "--noise-ratio",
                ratio,
                "--noise-std",
                std,
            ];
            check(&seed, &flags, 2, &[0, 1], 1, &|network, layer, expert| {
                let mut noisy = network.clone();
                let all: Vec<usize> = (0..network.width()).collect();
                let some =
                    (ratio.parse::<f64>().unwrap() * network.width() as f64).floor() as usize;
                let key = format!("layers.{layer}.experts.{expert}");
                let neurons = if ratio == "1" {
                    all
                } else {
                    order(&format!("{key}.noisy"), network.width())[..some].to_vec()
                };
                for part in noisy.parts.iter_mut().filter(|part| !part.bias) {
                    let std = std.parse::<f64>().unwrap();
                    part.replace(
                        &neurons,
                        &format!("{key}.{}.noise", part.key),
                        |old, draw| old + std * draw,
                    );
                }
                noisy
            });
        }
    }
}

#[test]
fn drop_upcycling_draws_neurons_again_from_their_own_moments() {
    for seed in seeds() {
        for (indices, ratio) in [
            ("shared", "0.5"),
            ("per-matrix", "0.5"),
            ("shared", "0.26"),
            ("shared", "1"),
            ("shared", "0"),
        ] {
            let flags = [
                "--method",
                "drop",
                "--experts",
                "2",
                "--drop-ratio",
                ratio,
                "--drop-indices",
                indices,
            ];
            check(&seed, &flags, 2, &[0, 1], 1, &|network, layer, expert| {
                let key = format!("layers.{layer}.experts.{expert}");
                let mut made = network.take(&order(&format!("{key}.order"), network.width()));
                let count =
                    (ratio.parse::<f64>().unwrap() * network.width() as f64).floor() as usize;
                if count == 0 {
                    return made;
                }
                for part in &mut made.parts {
                    let of = if indices == "shared" {
                        format!("{key}.dropped")
                    } else {
                        format!("{key}.{}.dropped", part.key)
                    };
                    let dropped = &order(&of, network.width())[..count];
                    let (mean, std) = part.moments(dropped);
                    part.replace(
                        dropped,
                        &format!("{key}.{}.redrawn", part.key),
                        |_, draw| mean + std * draw,
                    );
                }
                made
            });
        }
    }
}

#[test]
fn granular_experts_are_scaled_shards_in_virtual_groups() {
    // E = 2 copies of G = 4 shards. The factor s: E·G²/T with raw gates, G with gates that add up to 1.
    let base = [
        "--method",
        "granular",
        "--experts",
        "2",
        "--granularity",
        "4",
    ];
    for (flags, s, spread) in [
        (&[][..], 4.0, true),
        (&["--norm-topk-prob", "false"], 2.0 * 16.0 / 4.0, true),
        (&["--top-k", "8"], 2.0 * 16.0 / 8.0, true),
        (
            &["--norm-topk-prob", "true", "--weight-scaling", "down"],
            4.0,
            false,
        ),
        (&["--weight-scaling", "off"], 1.0, false),
    ] {
        for seed in seeds() {
            check(
                &seed,
                &[&base[..], flags].concat(),
                8,
                &[0, 1],
                4,
                &|network, _, expert| {
                    let width = network.width() / 4;
                    let first = (expert % 4) as usize * width;
                    let mut shard = network.take(&(first..first + width).collect::<Vec<_>>());
                    for part in &mut shard.parts {
                        let factor = match spread {
                            true => libm::cbrt(s),
                            false if part.columns => s,
                            false => 1.0,
                        };
                        part.rows
                            .iter_mut()
                            .flatten()
                            .for_each(|value| *value *= factor);
                    }
                    shard.scale_output_bias(s / 4.0);
                    shard
                },
            );
        }
    }
}

#[test]
fn shuffle_cuts_through_copies_and_draws_half_again() {
    for seed in seeds() {
        for (experts, width, ratio) in [(5u64, 20usize, "0.5"), (3, 48, "0"), (2, 7, "0.3")] {
            let (count, wide) = (experts.to_string(), width.to_string());
            let flags = [
                "--method",
                "shuffle",
                "--experts",
                &count,
                "--expert-width",
                &wide,
                "--reinit-ratio",
                ratio,
            ];
            check(
                &seed,
                &flags,
                experts,
                &[0, 1],
                1,
                &|network, layer, expert| {
                    let dense = network.width();
                    let copies = (experts as usize * width).div_ceil(dense);
                    let strip: Vec<usize> = (0..copies)
                        .flat_map(|copy| {
                            order(&format!("layers.{layer}.copies.{copy}.order"), dense)
                        })
                        .collect();
                    let mut made = network.take(&strip[expert as usize * width..][..width]);
                    let key = format!("layers.{layer}.experts.{expert}");
                    let fresh = (ratio.parse::<f64>().unwrap() * width as f64).floor() as usize;
                    let neurons = order(&format!("{key}.fresh"), width)[..fresh].to_vec();
                    for part in &mut made.parts {
                        let std = if part.bias { 0.0 } else { 0.02 };
                        part.replace(
                            &neurons,
                            &format!("{key}.{}.redrawn", part.key),
                            |_, draw| 0.0 + std * draw,
                        );
                    }
                    made.scale_output_bias(width as f64 / dense as f64);
                    made
                },
            );
        }
    }
}

#[test]
fn splitting_shares_out_the_neurons() {
    for seed in seeds() {
        for (flags, factor) in [
            (&["--top-k", "2"][..], 4.0 / 2.0),
            (&["--top-k", "2", "--output-scale", "1"], 1.0),
        ] {
            check(
                &seed,
                &[&["--method", "split", "--experts", "4"], flags].concat(),
                4,
                &[0, 1],
                1,
                &|network, layer, expert| {
                    let width = network.width() / 4;
                    let order = order(&format!("layers.{layer}.order"), network.width());
                    let mut made = network.take(&order[expert as usize * width..][..width]);
                    for part in made.parts.iter_mut().filter(|part| part.columns) {
                        part.rows
                            .iter_mut()
                            .flatten()
                            .for_each(|value| *value *= factor);
                    }
                    made.scale_output_bias(factor / 4.0);
                    made
                },
            );
        }
    }
}

// ---------------------------------------------------------------- of several models

fn models() -> [PathBuf; 3] {
    ["seed", "code", "law"].map(|model| fixture("llama").join(model))
}

fn with_experts(out: &Path, flags: &[&str]) -> Run {
    let [seed, code, law] = models();
    let (code, law) = (
        format!("code={}", code.display()),
        format!("law={}", law.display()),
    );
    upcycle(
        &seed,
        out,
        &[&["--expert", &code, "--expert", &law], flags].concat(),
    )
}

#[test]
fn chunks_of_each_network_and_of_all() {
    let models = models().map(|folder| read_folder(&folder));
    for method in ["bam", "btx"] {
        for blend in [false, true] {
            let work = TempDir::new().unwrap();
            let out = work.path().join("out");
            let flags: &[&str] = if blend {
                &["--blend"]
            } else {
                &["--split-ffn", "4"]
            };
            with_experts(&out, &[&["--method", method], flags].concat()).ok();
            crate::common::against(&out).ok();
            let (found, config) = (read_folder(&out), read_json(out.join("config.json")));
            let (experts, width) = if blend { (3, 48) } else { (12, 12) };
            assert_eq!(config["num_experts"], json!(experts));
            assert_eq!(config["moe_intermediate_size"], json!(width));
            assert_eq!(
                config["num_attention_experts"],
                json!(if method == "bam" { 3 } else { 1 })
            );
            assert_eq!(
                config["expert_names"][1],
                json!(if blend { "blend.1" } else { "seed.1" })
            );
            for layer in 0..LAYERS {
                let networks: Vec<Network> = models
                    .iter()
                    .map(|model| Network::read(model, layer))
                    .collect();
                for expert in 0..experts {
                    let (chunk, of) = if blend {
                        (16, 0..3)
                    } else {
                        (12, expert / 4..expert / 4 + 1)
                    };
                    let first = if blend {
                        expert * chunk
                    } else {
                        expert % 4 * chunk
                    };
                    let neurons: Vec<usize> = (first..first + chunk).collect();
                    let mut made = networks[of.start].take(&neurons);
                    for network in &networks[of.start + 1..of.end] {
                        for (part, other) in made.parts.iter_mut().zip(network.take(&neurons).parts)
                        {
                            part.rows.extend(other.rows);
                        }
                    }
                    for (name, tensor) in
                        made.tensors(&format!("model.layers.{layer}.mlp.experts.{expert}."))
                    {
                        assert_same_tensor(&name, &found[&name], &tensor);
                    }
                }
            }
        }
    }
}

#[test]
fn interpolated_experts_lie_between_the_seed_and_a_specialist() {
    let models = models().map(|folder| read_folder(&folder));
    for (flags, share) in [(&[][..], 0.5), (&["--expert-weight", "0.3"], 0.3)] {
        let work = TempDir::new().unwrap();
        let out = work.path().join("out");
        let method = ["--method", "interpolate", "--seed-copies", "1"];
        with_experts(&out, &[&method, flags].concat()).ok();
        crate::common::against(&out).ok();

        let (found, config) = (read_folder(&out), read_json(out.join("config.json")));
        assert_eq!(config["num_experts"], json!(4));
        assert_eq!(
            config["expert_names"],
            json!(["seed", "code", "law", "seed"])
        );
        for layer in 0..LAYERS {
            for projection in ["gate", "up", "down"] {
                let dense = format!("model.layers.{layer}.mlp.{projection}_proj.weight");
                let seed = &models[0][&dense];
                for expert in 0..4 {
                    let name = format!(
                        "model.layers.{layer}.mlp.experts.{expert}.{projection}_proj.weight"
                    );
                    let specialist = &models[expert % 3][&dense];
                    let between: Vec<f64> = (seed.values().iter())
                        .zip(specialist.values())
                        .map(|(seed, specialist)| (1.0 - share) * seed + share * specialist)
                        .collect();
                    let expected = match expert {
                        0 | 3 => seed.clone(),
                        _ => Tensor::new(seed.dtype, &seed.shape, &between),
                    };
                    assert_same_tensor(&name, &found[&name], &expected);
                }
            }
            let name = format!("model.layers.{layer}.self_attn.q_proj.weight");
            let of: Vec<&Tensor> = models.iter().map(|model| &model[&name]).collect();
            assert_same_tensor(&name, &found[&name], &mean(&of));
        }
    }
}

#[test]
fn a_weight_of_one_interpolates_to_the_experts_of_btx() {
    let work = TempDir::new().unwrap();
    let [btx, out] = ["btx", "out"].map(|name| work.path().join(name));
    with_experts(&btx, &["--method", "btx"]).ok();
    with_experts(&out, &["--method", "interpolate", "--expert-weight", "1"]).ok();
    bam!("diff", btx, out).ok();
}

#[test]
fn a_shared_expert_is_the_seeds_network() {
    let models = models().map(|folder| read_folder(&folder));
    let work = TempDir::new().unwrap();
    for (name, gated) in [("seed", false), ("seed:gated", true)] {
        // As in Nexus: specialists are routed and averaged, the seed is for every token.
        let out = work.path().join(name);
        with_experts(
            &out,
            &[
                "--method",
                "btx",
                "--no-seed-expert",
                "--shared-expert",
                name,
            ],
        )
        .ok();
        crate::common::against(&out).ok();
        bam!(
            "logits",
            out,
            "--tokens",
            fixture("golden/tokens.json"),
            "--dump",
            work.path().join("dump")
        )
        .ok();
        let (found, config) = (read_folder(&out), read_json(out.join("config.json")));
        assert_eq!(config["shared_expert_intermediate_size"], json!(48));
        assert_eq!(config.get("shared_expert_gate").is_some(), gated);
        for layer in 0..LAYERS {
            let mlp = format!("model.layers.{layer}.mlp");
            for part in ["gate_proj.weight", "up_proj.weight", "down_proj.weight"] {
                let shared = format!("{mlp}.shared_expert.{part}");
                assert_same_tensor(
                    &shared,
                    &found[&shared],
                    &models[0][&format!("{mlp}.{part}")],
                );
                for expert in 0..2 {
                    let name = format!("{mlp}.experts.{expert}.{part}");
                    assert_same_tensor(
                        &name,
                        &found[&name],
                        &models[expert + 1][&format!("{mlp}.{part}")],
                    );
                }
            }
            let gate = found.get(&format!("{mlp}.shared_expert_gate.weight"));
            assert_eq!(
                gate.map(|gate| gate.values().iter().any(|value| *value != 0.0)),
                gated.then_some(true)
            );
            let averaged = format!("model.layers.{layer}.self_attn.q_proj.weight");
            assert_same_tensor(
                &averaged,
                &found[&averaged],
                &mean(&[&models[1][&averaged], &models[2][&averaged]]),
            );
        }
    }
}

// ---------------------------------------------------------------- what the mixture computes

/// The largest difference between the logits of a mixture and the logits of its seed.
fn difference(seed: &Path, flags: &[&str]) -> f64 {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle(seed, &out, flags).ok();
    let tokens = fixture("golden/tokens.json");
    bam!("logits", out, seed, "--tokens", tokens, "--json").json()["max"]
        .as_f64()
        .unwrap()
}

#[test]
fn mixtures_that_theory_equates_with_the_seed() {
    let work = TempDir::new().unwrap();
    let relu = work.path().join("relu");
    copy_folder(&fixture("llama/seed"), &relu);
    edit_json(&relu.join("config.json"), |config| {
        config["hidden_act"] = json!("relu")
    });
    let granular = [
        "--method",
        "granular",
        "--experts",
        "2",
        "--granularity",
        "4",
    ];
    for seed in seeds() {
        for flags in [
            &["--method", "sparse", "--experts", "3", "--top-k", "soft"][..],
            &[
                "--method",
                "sparse",
                "--experts",
                "3",
                "--top-k",
                "2",
                "--norm-topk-prob",
                "true",
                "--layers",
                "last:1",
            ],
            &[
                "--method",
                "drop",
                "--experts",
                "3",
                "--drop-ratio",
                "0",
                "--top-k",
                "soft",
            ],
            // One whole copy is chosen, and gates of a group are equal: any factor on the output is made up for.
            &[
                &granular[..],
                &["--norm-topk-prob", "true", "--weight-scaling", "down"],
            ]
            .concat(),
            &[
                &granular[..],
                &["--top-k", "soft", "--weight-scaling", "down"],
            ]
            .concat(),
            &[
                "--method",
                "split",
                "--experts",
                "4",
                "--top-k",
                "soft",
                "--router",
                "zeros",
                "--output-scale",
                "4",
            ],
            &[
                "--method",
                "shuffle",
                "--experts",
                "4",
                "--expert-width",
                "12",
                "--reinit-ratio",
                "0",
                "--top-k",
                "soft",
            ],
        ] {
            let found = difference(&seed, flags);
            let uniform = flags.contains(&"shuffle");
            assert!(
                if uniform { found > 1e-3 } else { found < 1e-4 },
                "{flags:?}: {found}"
            );
        }
    }
    // Spread over all matrices the factor is exact where the activation is homogeneous, and 8^(1/3) = 2 is exact in bf16.
    let spread = granular;
    assert!(difference(&fixture("llama/seed"), &spread) > 1e-3);
    let soft = [
        "--method",
        "granular",
        "--experts",
        "2",
        "--granularity",
        "8",
        "--top-k",
        "soft",
    ];
    assert!(difference(&relu, &soft) < 1e-4);
}

#[test]
fn the_cost_of_a_method_is_that_of_its_mixture() {
    let (work, seed) = (TempDir::new().unwrap(), fixture("llama/seed"));
    for flags in [
        "--method sparse --experts 3 --top-k 2",
        "--method drop --experts 3",
        "--method granular --experts 2 --granularity 4",
        "--method shuffle --experts 5 --expert-width 20 --top-k 2",
        "--method split --experts 4 --top-k soft",
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        let out = work.path().join(flags[1]);
        upcycle(&seed, &out, &flags).ok();
        let asked = [&["cost", seed.to_str().unwrap(), "--json"], &flags[..]].concat();
        let predicted = crate::common::run(asked.into_iter().map(Into::into))
            .ok()
            .json();
        assert_eq!(
            predicted,
            bam!("cost", out, "--json").ok().json(),
            "{flags:?}"
        );
    }
    bam!("cost", seed, "--method", "granular", "--experts", "2")
        .refused(2, &["needs --granularity"]);
    bam!("cost", seed, "--method", "drop", "--granularity", "2")
        .refused(2, &["--granularity has no effect"]);
    bam!("cost", seed, "--method", "split", "--experts", "5")
        .refused(2, &["does not fall into 5 equal parts"]);
}

// ---------------------------------------------------------------- refusals

#[test]
fn a_hostile_expression_is_a_fault_and_no_more() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    upcycle(
        &fixture("llama/seed"),
        &out,
        &["--method", "sparse", "--experts", "2"],
    )
    .ok();
    let name = "model.layers.0.mlp.experts.0.up_proj.weight";
    let manifest = read_json(out.join("bam-manifest.json"));
    let copy = manifest["tensors"][name]["expression"].clone();
    let huge = u64::MAX;
    let at = |axis: u64, start: u64, length: u64| json!({"axis": axis, "seed": 0, "key": "", "start": start, "length": length});
    for expression in [
        json!({"op": "slice", "of": copy, "axis": 0, "start": huge, "length": huge}),
        json!({"op": "slice", "of": copy, "axis": huge, "start": 0, "length": 1}),
        json!({"op": "slice", "of": {"op": "normal", "std": 1.0, "seed": 0}, "axis": 0, "start": 0, "length": 48}),
        json!({"op": "concat", "of": [], "axis": 0}),
        json!({"op": "concat", "of": [copy, copy], "axis": 7}),
        json!({"op": "stack", "of": [copy]}),
        json!({"op": "gather", "of": copy, "at": at(0, 1, huge)}),
        json!({"op": "gather", "of": copy, "at": at(2, 0, 48)}),
        json!({"op": "repeat", "of": copy, "each": 0, "times": 0}),
        json!({"op": "repeat", "of": copy, "each": huge, "times": huge}),
        json!({"op": "scale", "of": copy, "by": null}),
        json!({"op": "add_noise", "of": copy, "std": -1.0, "seed": 0, "key": "", "at": at(0, 0, 1)}),
        json!({"op": "redraw", "of": copy, "at": at(1, 32, 1), "seed": 0, "key": ""}),
        json!({"op": "redraw", "of": copy, "at": at(0, 0, 0), "seed": 0, "key": ""}),
    ] {
        edit_json(&out.join("bam-manifest.json"), |manifest| {
            manifest["tensors"][name]["expression"] = expression.clone()
        });
        let run = crate::common::against(&out);
        assert_eq!(run.code, Some(1), "{expression}\n{run}");
        assert!(
            run.stdout.contains("cannot be computed") || run.stdout.contains("not a manifest"),
            "{expression}\n{run}"
        );
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let work = TempDir::new().unwrap();
    let out = work.path().join("out");
    let seed = fixture("llama/seed");
    for (flags, parts) in [
        ("--method sparse", &["--method sparse needs --experts"][..]),
        (
            "--method spare --experts 2",
            &["`spare`", "did you mean `sparse`?"],
        ),
        (
            "--method sparse --experts 2 --layers 2",
            &["--layers names layer 2, expected layers from 0 to 1"],
        ),
        (
            "--method sparse --experts 2 --layers evry:2",
            &["found `evry:2`"],
        ),
        (
            "--method sparse --experts 2 --drop-ratio 0.5",
            &["--drop-ratio has no effect with --method sparse"],
        ),
        (
            "--method sparse --experts 2 --seed-copies 1",
            &["--seed-copies has no effect with --method sparse"],
        ),
        (
            "--method sparse --experts 2 --kv shared",
            &["--kv has no effect with --method sparse, which keeps the seed's"],
        ),
        (
            "--method sparse --experts 2 --expert a=.",
            &["--expert has no effect with --method sparse"],
        ),
        (
            "--method sparse --experts 2 --top-k 3",
            &["--top-k 3 asks for more than the 2 experts"],
        ),
        (
            "--method btx --experts 2",
            &["--experts has no effect with --method btx"],
        ),
        (
            "--method drop --experts 2 --drop-ratio 1.5",
            &["--drop-ratio must be from 0 to 1, but is 1.5"],
        ),
        (
            "--method drop --experts 2 --drop-ratio nan",
            &["--drop-ratio must be from 0 to 1, but is NaN"],
        ),
        (
            "--method noise --experts 2 --noise-ratio 2",
            &["--noise-ratio must be from 0 to 1, but is 2"],
        ),
        (
            "--method noise --experts 2 --noise-std inf",
            &["--noise-std must be a non-negative number, but is inf"],
        ),
        (
            "--method granular --experts 2",
            &["--method granular needs --granularity"],
        ),
        (
            "--method granular --experts 2 --granularity 5",
            &["width 48 does not fall into 5 equal parts (--granularity)"],
        ),
        (
            "--method split --experts 5",
            &["width 48 does not fall into 5 equal parts (--experts)"],
        ),
        (
            "--method split --experts 4 --output-scale 0",
            &["--output-scale expects a positive number"],
        ),
        (
            "--method shuffle --experts 5",
            &["--method shuffle needs --expert-width"],
        ),
        (
            "--method shuffle --experts 5 --expert-width 8 --reinit-ratio=-1",
            &["--reinit-ratio must be from 0 to 1, but is -1"],
        ),
        (
            "--method btx --split-ffn 7",
            &["width 48 does not fall into 7 equal parts (--split-ffn)"],
        ),
        (
            "--method btx --split-ffn 2 --blend",
            &["exclude each other"],
        ),
        (
            "--method btx --blend --expert a=random",
            &["--blend", "`random`"],
        ),
        (
            "--method interpolate --expert-weight 0",
            &["--expert-weight must be above 0 and at most 1, but is 0"],
        ),
        (
            "--method interpolate --expert-weight nan --expert a=random",
            &["--expert-weight must be above 0 and at most 1, but is NaN"],
        ),
        (
            "--method interpolate --no-seed-expert --expert a=random",
            &["--method interpolate needs the seed as an expert"],
        ),
        (
            "--method sparse --experts 2 --expert-weight 0.5",
            &["--expert-weight has no effect with --method sparse"],
        ),
        (
            "--method split --experts 4 --router prompts:.",
            &["--router prompts:PATH"],
        ),
        (
            "--method sparse --experts 2 --target mixtral --layers 1",
            &["mixtral cannot hold this mixture"],
        ),
    ] {
        upcycle(&seed, &out, &flags.split(' ').collect::<Vec<_>>()).refused(2, parts);
        assert!(!out.exists(), "{flags}");
    }
}
