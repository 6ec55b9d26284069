//! The golden numbers come from the paper's Tables 7 and 9, recomputed in docs/design/paper.md.

use std::path::Path;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::Error;
use crate::family::{
    ArchitectureFault, Block, Config, Mixture, MlpType, NormPosition, NormType, QkNorm, RouterBias,
    RoutingPreset, RoutingRequest, TopK,
};

fn fixture(name: &str) -> Config {
    Config::read(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures")
            .join(name),
    )
    .unwrap()
}

fn cost(name: &str, request: Request) -> Report {
    Report::new(
        &request.architecture(&fixture(name)).unwrap(),
        PAPER_CONTEXT,
    )
    .unwrap()
}

const PAPER: RoutingRequest = RoutingRequest {
    preset: Some(RoutingPreset::Paper),
    top_k: None,
    attention_top_k: None,
    norm_topk_prob: None,
};

fn bam(kv: AttentionKv) -> Request {
    Request {
        method: Some(CostedMethod {
            name: "bam",
            attention_experts: true,
            usual_top_k: 2,
        }),
        kv: Some(kv),
        experts: Some(4),
        routing: PAPER,
        ..Request::default()
    }
}

fn btx(experts: u64, top_k: u64) -> Request {
    Request {
        method: Some(CostedMethod {
            name: "btx",
            attention_experts: false,
            usual_top_k: 2,
        }),
        experts: Some(experts),
        routing: RoutingRequest {
            top_k: Some(TopK::Of(top_k)),
            ..RoutingRequest::default()
        },
        ..Request::default()
    }
}

fn totals(report: &Report) -> (u64, u64) {
    (report.total_parameters, report.active_parameters)
}

#[test]
fn dense_seeds() {
    assert_eq!(
        totals(&cost("paper_small.json", Request::default())),
        (587_209_728, 587_209_728)
    );
    assert_eq!(
        totals(&cost("paper_large.json", Request::default())),
        (1_991_289_600, 1_991_289_600)
    );
}

#[test]
fn btx_with_growing_numbers_of_experts() {
    let total = |experts| cost("paper_small.json", btx(experts, 1)).total_parameters;
    assert_eq!(
        [4, 5, 6, 7, 8].map(total),
        [
            700_480_512,
            738_235_392,
            775_990_272,
            813_745_152,
            851_500_032
        ]
    );
    assert_eq!(
        totals(&cost("paper_small.json", btx(4, 1))),
        (700_480_512, 587_234_304)
    );
    assert_eq!(
        totals(&cost("paper_small.json", btx(6, 3))),
        (775_990_272, 662_744_064)
    );
}

#[test]
fn bam_of_both_kinds() {
    assert_eq!(
        totals(&cost("paper_small.json", bam(AttentionKv::Expert))),
        (776_002_560, 662_756_352)
    );
    assert_eq!(
        totals(&cost("paper_small.json", bam(AttentionKv::Shared))),
        (738_253_824, 625_007_616)
    );
}

#[test]
fn components_of_one_layer() {
    let rows = |request| {
        let report = cost("paper_small.json", request);
        let row = |component| {
            let row = report.layer_kinds[0]
                .parameters
                .iter()
                .find(|row| row.component == component)
                .unwrap();
            (row.total, row.active)
        };
        [
            row(Component::Norms),
            row(Component::OutputProjection),
            row(Component::QkvProjection),
            (0, row(Component::FfnIn).1),
            (0, row(Component::FfnOut).1),
            row(Component::FfnRouter),
            row(Component::AttentionRouter),
        ]
    };
    let same = |count| (count, count);
    let ffn = [(0, 4_194_304), (0, 2_097_152)];
    let dense = [
        same(1024),
        same(1_048_576),
        same(3_145_728),
        ffn[0],
        ffn[1],
        same(0),
        same(0),
    ];
    assert_eq!(rows(Request::default()), dense);
    let expert = [
        same(1024),
        same(4_194_304),
        same(12_582_912),
        ffn[0],
        ffn[1],
        same(4096),
        same(4096),
    ];
    assert_eq!(rows(bam(AttentionKv::Expert)), expert);
    // The paper prints 4,194,304 here, which leaves K and V out.
    let shared = [
        same(1024),
        same(4_194_304),
        same(6_291_456),
        ffn[0],
        ffn[1],
        same(4096),
        same(4096),
    ];
    assert_eq!(rows(bam(AttentionKv::Shared)), shared);
    let merged = [
        same(1024),
        same(1_048_576),
        same(3_145_728),
        ffn[0],
        ffn[1],
        same(4096),
        same(0),
    ];
    assert_eq!(rows(btx(4, 1)), merged);
}

#[test]
fn flops_of_one_layer() {
    let row = |request| {
        let flops = cost("paper_small.json", request).layer_kinds[0].flops_per_token;
        (flops.attention, flops.ffn, flops.total)
    };
    assert_eq!(
        row(bam(AttentionKv::Expert)),
        (35_651_584, 12_589_056, 48_257_024)
    );
    assert_eq!(row(btx(4, 1)), (8_912_896, 12_589_056, 21_510_144));
    assert_eq!(row(btx(6, 3)), (8_912_896, 37_767_168, 46_692_352));
}

#[test]
fn kv_cache() {
    let values = |name, kv| cost(name, bam(kv)).kv_cache_values_per_token;
    assert_eq!(values("paper_small.json", AttentionKv::Expert), 49_152);
    assert_eq!(values("paper_small.json", AttentionKv::Shared), 12_288);
    assert_eq!(values("paper_large.json", AttentionKv::Expert), 110_592);
    assert_eq!(values("paper_large.json", AttentionKv::Shared), 27_648);
    let report = cost("paper_small.json", bam(AttentionKv::Expert));
    assert_eq!(
        (report.kv_cache_bytes_per_token, report.parameter_bytes),
        (98_304, 2 * 776_002_560)
    );
}

#[test]
fn a_mixture_that_no_config_describes_is_routed_as_upcycle_has_it() {
    let per_token = |routing, experts| {
        let request = Request {
            routing,
            experts: Some(experts),
            ..bam(AttentionKv::Expert)
        };
        let architecture = request.architecture(&fixture("paper_small.json")).unwrap();
        architecture.mixture.unwrap().num_experts_per_tok
    };
    assert_eq!(per_token(RoutingRequest::default(), 4), 2);
    assert_eq!(per_token(RoutingRequest::default(), 1), 1);
    assert_eq!(per_token(PAPER, 4), 1);
}

/// Q and O of the routed experts, K and V of all; routers always.
#[test]
fn top_k_attention() {
    let request = Request {
        routing: RoutingRequest {
            attention_top_k: Some(TopK::Of(1)),
            ..PAPER
        },
        ..bam(AttentionKv::Expert)
    };
    let report = cost("paper_small.json", request);
    assert_eq!(
        totals(&report),
        (776_002_560, 662_756_352 - 6 * 3 * 2 * 1024 * 1024)
    );
    assert_eq!(
        report.layer_kinds[0].flops_per_token.attention_mask,
        2 * 256 * 1024
    );
}

#[test]
fn the_mixture_keys_of_a_config_are_honoured() {
    let mut config = fixture("paper_small.json");
    config.json.insert("num_experts".to_owned(), json!(4));
    config
        .json
        .insert("attention_kv".to_owned(), json!("shared"));
    config
        .json
        .insert("moe_layers".to_owned(), json!([0, 2, 4]));
    config
        .json
        .insert("attention_moe_layers".to_owned(), json!([0, 1]));
    let report = Report::new(&Request::default().architecture(&config).unwrap(), 256).unwrap();
    let kinds: Vec<_> = report
        .layer_kinds
        .iter()
        .map(|k| (k.attention_experts, k.ffn_experts, &k.layers[..]))
        .collect();
    let expected: [(bool, bool, &[u64]); 4] = [
        (true, true, &[0]),
        (true, false, &[1]),
        (false, true, &[2, 4]),
        (false, false, &[3, 5]),
    ];
    assert_eq!(kinds, expected);
    let flags = Request {
        experts: Some(8),
        ..Request::default()
    };
    let mixture = flags.architecture(&config).unwrap().mixture.unwrap();
    assert_eq!(
        (mixture.num_experts, mixture.num_attention_experts_per_tok),
        (8, 8)
    );
    assert_eq!(mixture.attention_kv, AttentionKv::Shared);
    // The config says nothing of the experts a token, which means one.
    assert_eq!(mixture.num_experts_per_tok, 1);
    // The mixture has the paper's block, whatever the family of the config that describes it.
    let mut llama = fixture("paper_small.json");
    llama.json.insert("model_type".to_owned(), json!("llama"));
    llama.json.insert("block".to_owned(), json!("parallel"));
    let report = Report::new(&bam(AttentionKv::Expert).architecture(&llama).unwrap(), 256).unwrap();
    assert_eq!(report.total_parameters, 776_002_560);
}

#[test]
fn refusals() {
    let refused = |request: Request| {
        request
            .architecture(&fixture("paper_small.json"))
            .unwrap_err()
    };
    let fault = |request: Request| match refused(request) {
        Error::Family(FamilyError::Architecture { fault }) => fault,
        other => panic!("{other}"),
    };
    assert_eq!(
        fault(btx(4, 5)),
        ArchitectureFault::OutOfRange {
            key: "num_experts_per_tok",
            least: 1,
            most: 4,
            found: 5,
        }
    );
    let kv = Request {
        kv: Some(AttentionKv::Shared),
        ..btx(4, 1)
    };
    let error = refused(kv);
    assert!(
        matches!(
            error,
            Error::Family(FamilyError::NoAttentionExperts { method: "btx" })
        ),
        "{error}"
    );
    assert_eq!(
        fault(btx(u64::MAX, 1)),
        ArchitectureFault::OutOfRange {
            key: "num_experts",
            least: 1,
            most: 1 << 31,
            found: u64::MAX,
        }
    );
    let many = fault(btx(1 << 31, 1));
    assert!(
        matches!(many, ArchitectureFault::ManyTensors { .. }),
        "{many}"
    );
    let dense = Request::default()
        .architecture(&fixture("paper_small.json"))
        .unwrap();
    let error = Report::new(&dense, u64::MAX).unwrap_err();
    assert!(
        matches!(error, Error::Family(FamilyError::ManyFlops { .. })),
        "{error}"
    );
    assert_eq!("soft".parse(), Ok(TopK::Soft));
    assert_eq!("2".parse(), Ok(TopK::Of(2)));
    assert!("0".parse::<TopK>().is_err());
}

#[test]
fn the_table() {
    insta::assert_snapshot!(table(&cost("paper_small.json", bam(AttentionKv::Expert))));
}

fn layers() -> impl Strategy<Value = Layers> {
    prop_oneof![
        Just(Layers::All),
        proptest::sample::subsequence(vec![0u64, 1, 2, 3], 0..=4).prop_map(Layers::List),
    ]
}

prop_compose! {
    fn mixtures()(
        num_experts in 1u64..6, extra in 0u64..3, moe_intermediate_size in 1u64..20, moe_layers in layers(),
        attention_moe_layers in layers(), kv in 0usize..3, k in 0u64..6, attention_k in 0u64..6, dense in Just(base()),
        shared in proptest::option::of(1u64..9), gate: bool, expert_adapters: bool, bias in 0usize..3,
    ) -> Mixture {
        Mixture {
            num_experts: num_experts + extra,
            num_attention_experts: num_experts,
            moe_intermediate_size,
            moe_layers,
            attention_moe_layers,
            attention_kv: [AttentionKv::Expert, AttentionKv::Shared, AttentionKv::Merged][kv],
            num_experts_per_tok: 1 + k % (num_experts + extra),
            num_attention_experts_per_tok: 1 + attention_k % num_experts,
            shared_expert_intermediate_size: shared,
            shared_expert_gate: gate && shared.is_some(),
            expert_adapters,
            router_bias: [RouterBias::None, RouterBias::Logits, RouterBias::Choice][bias],
            ..Mixture::new(&dense, num_experts)
        }
    }
}

fn base() -> Architecture {
    Architecture {
        num_layers: 4,
        ..Architecture::of(&fixture("paper_small.json")).unwrap()
    }
}

prop_compose! {
    fn architectures()(
        hidden_size in 1u64..40, intermediate_size in 1u64..40, kv in 1u64..4, group in 1u64..4, head_dim in 1u64..9,
        vocab_size in 1u64..50, tie_word_embeddings: bool, attention_bias: bool, attention_output_bias: bool,
        mlp_bias: bool, norm_bias: bool, head_bias: bool, qk in 0usize..4, block in 0usize..3, position in 0usize..3, plain: bool,
        mixture in mixtures(), base in Just(base()),
    ) -> Architecture {
        Architecture {
            hidden_size, intermediate_size, num_kv_heads: kv, num_heads: kv * group, head_dim, vocab_size,
            tie_word_embeddings, attention_bias, attention_output_bias, mlp_bias, norm_bias, head_bias,
            qk_norm: [QkNorm::None, QkNorm::HeadDim, QkNorm::PerHead, QkNorm::Full][qk],
            block: [Block::Sequential, Block::Parallel, Block::ParallelTwoNorms][block],
            norm_type: NormType::Layer,
            norm_position: [NormPosition::Pre, NormPosition::Post, NormPosition::Sandwich][position],
            mlp_type: if plain { MlpType::Plain } else { MlpType::Gated },
            ..base
        }.upcycled(mixture)
    }
}

proptest! {
    /// Two ways of counting: the tensors of the checkpoint, and the arithmetic of the report.
    #[test]
    fn tensors_add_up_to_the_total(architecture in architectures()) {
        let report = Report::new(&architecture, 100).unwrap();
        let tensors = architecture.tensors().unwrap();
        let sum: u64 = tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum();
        prop_assert_eq!(sum, report.total_parameters);
        prop_assert!(report.active_parameters <= report.total_parameters);
        let names: std::collections::HashSet<_> = tensors.iter().map(|tensor| &tensor.name).collect();
        prop_assert_eq!(names.len(), tensors.len());
        prop_assert_eq!(report.layer_kinds.iter().map(|kind| kind.layers.len()).sum::<usize>(), 4);
    }
}
