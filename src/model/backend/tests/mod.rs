//! Each operation of the cpu backend against the reference, over a table of shapes, dtypes and features: outputs,
//! gradients of inputs, and gradients of parameters.

mod maker;
mod tables;

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor, Var};

use super::cpu::{self, HostState};
use super::gradients::Gradients;
use super::host::Residence;
use super::operations::{OperationRecord, Routed, TensorOperations};
use super::optimiser::{AdamW, MeasuredUpdate, OptimiserState, StatePart, Update};
use super::readings::Readings;
use super::reference::{DeviceState, Reference};
use crate::family::NormType;
use crate::model::cache::LayerCache;
use crate::model::modules::{Head, Norm};
use crate::model::params::Mode;
use crate::model::pass::KeptMasks;
use crate::model::router::RouterLosses;
use maker::{Features, HIDDEN, Maker, SHAPES};
use tables::{attention_table, feed_forward_table};

/// Named numbers of one run: output, gradients.
type Numbers = BTreeMap<String, Vec<f64>>;

fn numbers(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn parameters(maker: &Maker, gradients: &Gradients, found: &mut Numbers) {
    for number in 0..maker.state.borrow().1.len() {
        if let Some(gradient) = gradients.get(number) {
            found.insert(format!("parameter {number}"), numbers(gradient));
        }
    }
}

/// Runs an operation forward and back, once alone and once added to a sum.
fn differentiate(
    maker: &Maker,
    operations: &TensorOperations,
    run: &dyn Fn() -> Routed<Tensor, Box<dyn OperationRecord>>,
) -> Numbers {
    let mut found = Numbers::new();
    let output = run().output;
    let grad_output = maker.tensor(output.dims(), 1.0);
    let sum = maker.tensor(output.dims(), 1.0);
    for (name, sum) in [("alone", None), ("added", Some(sum))] {
        let mut gradients = maker.gradients();
        let routed = run();
        let grad_input = operations
            .backward(routed.record.unwrap(), &grad_output, sum, &mut gradients)
            .unwrap();
        found.insert(format!("gradient, {name}"), numbers(&grad_input));
        parameters(maker, &gradients, &mut found);
        if let Some(routing) = routed.routing {
            found.insert("gates".to_owned(), numbers(&routing.gates));
        }
        if let Some(loss) = routed.loss {
            let mut readings = Readings::default();
            let loss = loss.want(&mut readings).unwrap();
            let loss = loss.values(&readings.read().unwrap());
            found.insert("losses".to_owned(), vec![loss.load_balance, loss.z]);
            let chosen = loss.chosen.iter().map(|count| *count as f64).collect();
            found.insert("chosen".to_owned(), chosen);
        }
    }
    found.insert("output".to_owned(), numbers(&output));
    found
}

fn compare(name: &str, found: &Numbers, expected: &Numbers, tolerance: f64) {
    assert!(
        found.keys().eq(expected.keys()),
        "{name}: {:?} {:?}",
        found.keys(),
        expected.keys()
    );
    for (part, values) in found {
        let expected = &expected[part];
        assert_eq!(values.len(), expected.len(), "{name}: {part}");
        let largest = expected
            .iter()
            .fold(0f64, |most, value| most.max(value.abs()));
        for (value, expected) in values.iter().zip(expected) {
            let off = (value - expected).abs() / (largest + 1e-3);
            assert!(off < tolerance, "{name}: {part}: {value} {expected}");
        }
    }
}

/// Compares the kernels with the reference in float32 and float64, and the reference on a device with that on the host.
fn table(name: &str, some_frozen: bool, run: impl Fn(&Maker, &TensorOperations) -> Numbers) {
    let maker = |dtype| Maker::new(dtype, some_frozen);
    let found = run(&maker(DType::F32), &cpu::Training);
    for (dtype, tolerance) in [(DType::F32, 1e-4), (DType::F64, 1e-4)] {
        let expected = run(&maker(dtype), &Reference::new(Mode::Train, Residence::Host));
        compare(&format!("{name}, {dtype:?}"), &found, &expected, tolerance);
        let on_device = run(
            &maker(dtype),
            &Reference::new(Mode::Train, Residence::Device),
        );
        let (name, tolerance) = (format!("{name}, {dtype:?}, as on a device"), 1e-6);
        compare(&name, &on_device, &expected, tolerance);
    }
}

#[test]
fn norms_are_those_of_the_reference() {
    type MakeNorm = fn(&Maker, NormType, &[usize]) -> Norm;
    let makers: [(&str, MakeNorm); 2] = [
        ("weight", Maker::norm),
        ("offset and bias", Maker::norm_with_all),
    ];
    for kind in [NormType::Rms, NormType::Layer] {
        for shape in [&[1usize][..], &[31], &[32], &[100], &[3, 8]] {
            for rows in [1usize, 2, 70] {
                for (with, make) in makers {
                    norm_is_that_of_the_reference(
                        &format!("{kind:?} {shape:?} {rows} {with}"),
                        &[&[2, rows], shape].concat(),
                        |maker| make(maker, kind, shape),
                    );
                }
            }
        }
    }
}

fn norm_is_that_of_the_reference(name: &str, dims: &[usize], make: impl Fn(&Maker) -> Norm) {
    table(name, false, |maker, operations| {
        let norm = make(maker);
        let x = maker.tensor(dims, 2.0);
        differentiate(maker, operations, &|| {
            let computed = operations.norm(&norm, &x).unwrap();
            Routed {
                output: computed.output,
                record: computed.record,
                routing: None,
                loss: None,
            }
        })
    });
}

#[test]
fn attention_is_that_of_the_reference() {
    for features in attention_table() {
        for (batch, seq) in SHAPES {
            let name = format!("{batch} x {seq}, {features:?}");
            table(&name, features.some_frozen, |maker, operations| {
                let attention = maker.attention(&features);
                let h = maker.tensor(&[batch, seq, HIDDEN], 1.0);
                differentiate(maker, operations, &|| {
                    let pass = maker.pass(&features, batch, seq);
                    operations.attention(&attention, &h, &pass, None).unwrap()
                })
            });
        }
    }
}

#[test]
fn feed_forward_is_that_of_the_reference() {
    for features in feed_forward_table() {
        for (batch, seq) in SHAPES {
            let name = format!("{batch} x {seq}, {features:?}");
            table(&name, features.some_frozen, |maker, operations| {
                let sublayer = maker.feed_forward(&features);
                let h = maker.tensor(&[batch, seq, HIDDEN], 1.0);
                let losses = RouterLosses {
                    kind: features.balance,
                    load_balance: 0.3,
                    z: 0.1,
                    share: 0.5,
                };
                differentiate(maker, operations, &|| {
                    let pass = maker.pass(&features, batch, seq);
                    operations
                        .feed_forward(&sublayer, &h, &pass, Some(&losses))
                        .unwrap()
                })
            });
        }
    }
}

#[test]
fn losses_and_embeddings_are_those_of_the_reference() {
    for (tokens, vocab, scale, soft_cap, some_frozen) in [
        (1, 7, None, None, false),
        (5, 40, Some(0.5), None, false),
        (5, 40, Some(1.5), Some(0.7), false),
        (70, 300, None, None, true),
        (70, 300, None, Some(2.0), true),
    ] {
        let name = format!("{tokens} x {vocab}, {scale:?}, {soft_cap:?}");
        table(&name, some_frozen, |maker, operations| {
            let mut found = Numbers::new();
            // The second parameter is frozen.
            let table = maker.matrix(vocab, HIDDEN);
            let head = Head {
                weight: maker.matrix(vocab, HIDDEN),
                bias: scale.map(|_| maker.parameter(&[vocab], 0.3)),
                scale,
                soft_cap,
            };
            let ids: Vec<u32> = (0..tokens).map(|i| (i * i % vocab) as u32).collect();
            let ids = Tensor::from_vec(ids, (1, tokens), &Device::Cpu).unwrap();
            let targets: Vec<u32> = (0..tokens).map(|i| (i * 31 % vocab) as u32).collect();
            let weights: Vec<f32> = (0..tokens).map(|i| (i % 3) as f32 * 0.5).collect();
            let mut gradients = maker.gradients();

            let x = operations.embed(&table, &ids).unwrap();
            let rows = x.flatten(0, 1).unwrap();
            let losses = operations
                .loss(&head, &rows, &targets, &weights, &mut gradients)
                .unwrap();
            operations
                .embed_backward(
                    &table,
                    &ids,
                    &losses.grad_x.unsqueeze(0).unwrap(),
                    &mut gradients,
                )
                .unwrap();
            let likelihoods = operations.likelihoods(&head, &rows, &targets).unwrap();
            assert_eq!(numbers(&likelihoods), numbers(&losses.nll));
            found.insert("losses".to_owned(), numbers(&losses.nll));
            found.insert("gradient".to_owned(), numbers(&losses.grad_x));
            parameters(maker, &gradients, &mut found);
            found
        });
    }
}

#[test]
fn inference_is_that_of_the_reference() {
    let options = |table: Vec<Features>| table.into_iter().filter(|features| !features.some_frozen);
    let run = |dtype, operations: &TensorOperations| {
        let mut all = Numbers::new();
        for (number, features) in options(attention_table()).enumerate() {
            let maker = Maker::new(dtype, false);
            let attention = maker.attention(&features);
            let h = maker.tensor(&[2, 70, HIDDEN], 1.0);
            let mut pass = maker.pass(&features, 2, 70);
            let whole = operations.attention(&attention, &h, &pass, None).unwrap();
            assert!(whole.record.is_none());
            all.insert(format!("attention {number}"), numbers(&whole.output));
            if features.mask == "documents" {
                continue;
            }
            // The same rows in three parts with a cache, and with the rotations of the whole.
            let mut cache = LayerCache::default();
            let rotation = pass.rotations.full.clone();
            let scales = pass.query_scales.clone();
            for (first, rows) in [(0, 50), (50, 1), (51, 19)] {
                pass.attention_mask.offset = first;
                pass.rotations.full.cos = rotation.cos.narrow(1, first, rows).unwrap();
                pass.rotations.full.sin = rotation.sin.narrow(1, first, rows).unwrap();
                let scales = scales.as_ref();
                pass.query_scales = scales.map(|all| all.narrow(1, first, rows).unwrap());
                pass.masks = KeptMasks::default();
                let h = h.narrow(1, first, rows).unwrap();
                let part = operations
                    .attention(&attention, &h, &pass, Some(&mut cache))
                    .unwrap();
                let expected = whole.output.narrow(1, first, rows).unwrap();
                let off = (part.output - expected).unwrap().abs().unwrap();
                let off = off.flatten_all().unwrap().max(D::Minus1).unwrap();
                assert!(numbers(&off)[0] < 1e-5, "{features:?}");
            }
        }
        for (number, features) in options(feed_forward_table()).enumerate() {
            let maker = Maker::new(dtype, false);
            let sublayer = maker.feed_forward(&features);
            let h = maker.tensor(&[2, 70, HIDDEN], 1.0);
            let pass = maker.pass(&features, 2, 70);
            let out = operations.feed_forward(&sublayer, &h, &pass, None).unwrap();
            all.insert(format!("feed-forward {number}"), numbers(&out.output));
        }
        for kind in [NormType::Rms, NormType::Layer] {
            let maker = Maker::new(dtype, false);
            for norm in [
                maker.norm(kind, &[3, 8]),
                maker.norm_with_all(kind, &[3, 8]),
            ] {
                let x = maker.tensor(&[2, 5, 3, 8], 1.0);
                let out = operations.norm(&norm, &x).unwrap();
                all.insert(format!("{kind:?}, {}", norm.offset), numbers(&out.output));
            }
        }
        all
    };
    let found = run(DType::F32, &cpu::INFERENCE);
    for dtype in [DType::F32, DType::F64] {
        let expected = run(dtype, &Reference::new(Mode::Infer, Residence::Host));
        compare(&format!("{dtype:?}"), &found, &expected, 1e-4);
        let on_device = run(dtype, &Reference::new(Mode::Infer, Residence::Device));
        compare(&format!("{dtype:?}, device"), &on_device, &expected, 1e-6);
    }
}

/// Makes the state of a parameter, given its float32 values where the parameter has another dtype.
type MakeState<'a> = &'a dyn Fn(&Var, Option<Vec<f32>>) -> Box<dyn OptimiserState>;

#[test]
fn optimiser_steps_are_those_of_the_reference() {
    let adamw = AdamW {
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
    };
    for (dtype, elements) in [(DType::F32, 5), (DType::F32, 40_000), (DType::BF16, 300)] {
        let run = |state: MakeState| {
            let maker = Maker::new(DType::F32, false);
            let start = maker.tensor(&[elements], 1.0);
            let var = Var::from_tensor(&start.to_dtype(dtype).unwrap()).unwrap();
            let master = (dtype != DType::F32).then(|| start.to_vec1::<f32>().unwrap());
            let mut state = state(&var, master);
            let mut found = Numbers::new();
            for number in 1..=5 {
                let update = Update {
                    rate: 1e-2,
                    weight_decay: 0.1,
                    scale: 0.5,
                    number,
                    measured: true,
                };
                let gradient = maker.tensor(&[elements], 1.0);
                let gradient = (number != 3).then_some(&gradient);
                let sums = state.update(&adamw, &update, gradient).unwrap();
                let sums = MeasuredUpdate::read_all(&[sums]).unwrap()[0];
                found.insert(format!("sums {number}"), vec![sums.weights, sums.changes]);
            }
            state.shift(&vec![0.5; elements]).unwrap();
            for part in [StatePart::Master, StatePart::First, StatePart::Second] {
                let values = state.download(part).unwrap();
                let values = values.iter().map(|value| f64::from(*value)).collect();
                found.insert(format!("{part:?}"), values);
            }
            found.insert("parameter".to_owned(), numbers(var.as_tensor()));
            found
        };
        let host = run(&|var, master| Box::new(HostState::new(var, master)));
        let device = run(&|var, master| Box::new(DeviceState::new(var, master).unwrap()));
        compare(&format!("{dtype:?} {elements}"), &host, &device, 1e-5);
    }
}
