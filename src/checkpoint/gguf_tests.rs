use proptest::prelude::*;

use super::super::gguf_build::{Build, text};
use super::*;

/// Two tensors and a few keys.
fn small() -> Build {
    let mut build = Build::new();
    build
        .text("general.architecture", "llama")
        .u32("llama.block_count", 1)
        .f32("eps", 1e-5)
        .bool("yes", true);
    build.texts("tokens", &["a", "b"]).i32s("kinds", &[1, -3]);
    build
        .tensor("a.weight", &[3, 32], 8, vec![7; 3 * 34])
        .zeros("b.weight", &[5]);
    build
}

fn read(bytes: &[u8]) -> Result<Gguf> {
    Gguf::read(Path::new("m.gguf"), bytes, bytes.len() as u64)
}

fn refused(bytes: &[u8]) -> GgufError {
    match read(bytes).unwrap_err() {
        Error::Gguf(error) => error,
        other => panic!("{other}"),
    }
}

/// The rule that a metadata key breaks.
fn key_rule(build: &Build, name: &str) -> GgufRule {
    match refused(&build.bytes()) {
        GgufError::Key { key, rule, .. } if key == name => *rule,
        other => panic!("{other}"),
    }
}

/// The rule that a tensor breaks.
fn tensor_rule(bytes: &[u8], name: &str) -> GgufRule {
    match refused(bytes) {
        GgufError::Tensor { tensor, rule, .. } if tensor == name => *rule,
        other => panic!("{other}"),
    }
}

#[test]
fn metadata_and_tensors_are_as_written() {
    let bytes = small().bytes();
    let gguf = read(&bytes).unwrap();
    assert_eq!(gguf.text("general.architecture").unwrap(), Some("llama"));
    assert_eq!(gguf.unsigned("llama.block_count").unwrap(), Some(1));
    assert_eq!(
        gguf.float("eps").unwrap(),
        Some(1e-5),
        "the shortest decimal of the 32-bit float"
    );
    assert_eq!(gguf.boolean("yes").unwrap(), Some(true));
    assert_eq!(gguf.texts("tokens").unwrap().unwrap(), ["a", "b"]);
    assert_eq!(gguf.integers("kinds").unwrap().unwrap(), [1, -3]);
    assert_eq!(gguf.unsigned("absent").unwrap(), None);
    let a = &gguf.tensors["a.weight"];
    assert_eq!(
        (a.encoding, &a.shape[..], a.length),
        (Encoding::Ggml(GgmlType::Q8_0), &[3, 32][..], 102)
    );
    assert!(a.offset.is_multiple_of(32));
    assert_eq!(
        bytes[a.offset as usize..(a.offset + a.length) as usize],
        [7; 102]
    );
    let b = &gguf.tensors["b.weight"];
    assert_eq!(
        (b.encoding, b.elements()),
        (Encoding::Plain(safetensors::Dtype::F32), 5)
    );
    assert_eq!(b.offset + b.length, bytes.len() as u64);
}

#[test]
fn a_value_of_another_type_is_refused_by_key() {
    let gguf = read(&small().bytes()).unwrap();
    for (error, name, value) in [
        (
            gguf.unsigned("general.architecture").unwrap_err(),
            "general.architecture",
            "\"llama\"",
        ),
        (
            gguf.texts("kinds").unwrap_err(),
            "kinds",
            "a list of 2 I32 values",
        ),
    ] {
        assert!(
            matches!(&error, Error::Input(InputError::WrongValue { key, found, .. })
                if key == name && found == value),
            "{error}"
        );
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = small().bytes();
    for length in 0..bytes.len() {
        assert!(
            read(&bytes[..length]).is_err(),
            "{length} of {} bytes",
            bytes.len()
        );
    }
}

#[test]
fn a_file_that_shrinks_while_read_is_an_error_of_reading() {
    let bytes = small().bytes();
    let error = Gguf::read(Path::new("m.gguf"), &bytes[..100], bytes.len() as u64).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
}

#[test]
fn counts_and_lengths_beyond_the_file_are_refused_before_anything_is_allocated() {
    let mut bytes = small().bytes();
    bytes[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    let error = refused(&bytes);
    assert!(
        matches!(
            error,
            GgufError::Counts {
                keys: 6,
                tensors: u64::MAX,
                ..
            }
        ),
        "{error}"
    );
    let huge = |kind: u32| [&kind.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    for kind in [0, 8, 12] {
        let rule = key_rule(Build::new().raw("long", 9, &huge(kind)), "long");
        assert!(
            matches!(&rule, GgufRule::Cut { value, .. } if value.contains("18446744073709551615")),
            "{rule}"
        );
    }
    let rule = key_rule(Build::new().raw("long", 8, &u64::MAX.to_le_bytes()), "long");
    assert!(
        matches!(&rule, GgufRule::Cut { value, needed: u64::MAX, .. } if value == "a text"),
        "{rule}"
    );
}

#[test]
fn duplicates_are_refused_by_name() {
    let rule = key_rule(small().u32("eps", 1), "eps");
    assert!(matches!(rule, GgufRule::RepeatedKey), "{rule}");
    let rule = tensor_rule(&small().zeros("a.weight", &[1]).bytes(), "a.weight");
    assert!(matches!(rule, GgufRule::RepeatedTensor), "{rule}");
}

#[test]
fn nonsense_values_are_refused_by_key() {
    let odd = |kind, value: &[u8]| key_rule(Build::new().raw("odd", kind, value), "odd");
    let rule = odd(99, &[]);
    assert!(matches!(rule, GgufRule::ValueType { code: 99 }), "{rule}");
    let rule = odd(7, &[2]);
    assert!(
        matches!(&rule, GgufRule::TruthValue { found } if found[..] == [2]),
        "{rule}"
    );
    let rule = odd(8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    assert!(
        matches!(rule, GgufRule::NotUtf8 { length: 1, .. }),
        "{rule}"
    );
    let lists = [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0; 12]].concat();
    let rule = odd(9, &lists);
    assert!(matches!(rule, GgufRule::ListOfLists), "{rule}");

    for alignment in [0, 3] {
        let error = read(&small().u32("general.alignment", alignment).bytes()).unwrap_err();
        assert!(
            matches!(&error, Error::Input(InputError::WrongValue { key, expected, found, .. })
                if key == "general.alignment" && expected == "a power of two" && *found == alignment.to_string()),
            "{error}"
        );
    }
    let rule = key_rule(small().u32("split.count", 2), "split.count");
    assert!(matches!(rule, GgufRule::OnePart { count: 2 }), "{rule}");
}

#[test]
fn nonsense_tensors_are_refused_by_name() {
    let odd = |shape: &[u64], kind| {
        tensor_rule(&small().tensor("odd", shape, kind, vec![]).bytes(), "odd")
    };
    let rule = odd(&[1, 1, 1, 1, 1], 0);
    assert!(
        matches!(rule, GgufRule::Dimensions { most: 4, found: 5 }),
        "{rule}"
    );
    for (shape, kind, expected) in [(&[2, 33][..], 2, (33, "Q4_0")), (&[1], 39, (1, "MXFP4"))] {
        let rule = odd(shape, kind);
        assert!(
            matches!(&rule, GgufRule::PartialBlock { block: 32, row, kind, .. }
                if (*row, kind.to_string().as_str()) == expected),
            "{rule}"
        );
    }
    for shape in [[u64::MAX, 2], [1 << 60, 32]] {
        let rule = odd(&shape, 0);
        assert!(matches!(rule, GgufRule::LargeShape { .. }), "{rule}");
    }
    let rule = odd(&[1 << 40], 0);
    assert!(matches!(rule, GgufRule::PastEnd { .. }), "{rule}");
    let rule = odd(&[1], 7777);
    assert!(
        matches!(rule, GgufRule::ElementType { code: 7777, .. }),
        "{rule}"
    );
}

#[test]
fn offsets_outside_the_file_or_inside_another_tensor_are_refused() {
    let at = |offset| tensor_rule(&small().bytes_with_offsets(&[0, offset]), "b.weight");
    let rule = at(64);
    assert!(
        matches!(&rule, GgufRule::SharedData { other, .. } if other == "a.weight"),
        "{rule}"
    );
    for offset in [1 << 40, u64::MAX - 31] {
        let rule = at(offset);
        assert!(matches!(rule, GgufRule::PastEnd { .. }), "{rule}");
    }
    let rule = at(130);
    assert!(
        matches!(
            rule,
            GgufRule::Unaligned {
                alignment: 32,
                offset: 130
            }
        ),
        "{rule}"
    );
}

#[test]
fn other_files_and_versions_are_refused() {
    let error = refused(b"PK\x03\x04 and so on and on and on");
    assert!(matches!(error, GgufError::Magic { .. }), "{error}");
    let with = |version| Build { version, ..small() }.bytes();
    for other in [1, 4] {
        let error = refused(&with(other));
        assert!(
            matches!(&error, GgufError::Version { version, .. } if *version == other),
            "{error}"
        );
    }
    let error = refused(&with(3_u32.swap_bytes()));
    assert!(matches!(error, GgufError::BigEndian { .. }), "{error}");
    assert!(read(&with(2)).is_ok());
    assert!(Gguf::open(Path::new("/")).is_err());
    assert_eq!(
        Gguf::open(Path::new("/no/such.gguf"))
            .unwrap_err()
            .exit_code(),
        2
    );
}

#[test]
fn an_alignment_of_its_own_is_followed() {
    let mut build = small();
    build.u32("general.alignment", 128);
    build.alignment = 128;
    let gguf = read(&build.bytes()).unwrap();
    assert!(
        gguf.tensors
            .values()
            .all(|entry| entry.offset.is_multiple_of(128))
    );
}

#[test]
fn a_small_tensor_is_read_and_a_quantised_one_is_not() {
    let data: Vec<_> = [1.5_f32, -2.0]
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    let (_folder, path) = small().tensor("c", &[2], 0, data).file();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.small_tensor("c").unwrap(), [1.5, -2.0]);
    let error = gguf.small_tensor("a.weight").unwrap_err();
    assert!(
        matches!(&error, Error::Gguf(GgufError::Tensor { rule, .. })
            if matches!(&**rule, GgufRule::NotSmall { found, .. } if found.contains("Q8_0"))),
        "{error}"
    );
    assert_eq!(
        gguf.tensor("a.weigth").unwrap_err().hint().as_deref(),
        Some("the nearest name in this checkpoint is `a.weight`")
    );
}

proptest! {
    #[test]
    fn no_change_of_bytes_makes_it_panic(changes in prop::collection::vec((0_usize..400, any::<u8>()), 1..8), cut in 0_usize..500) {
        let mut bytes = small().bytes();
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(cut.max(24));
        if let Ok(gguf) = read(&bytes) {
            for entry in gguf.tensors.values() {
                prop_assert!(entry.length == 0 || entry.offset + entry.length <= bytes.len() as u64);
            }
        }
    }
}

#[test]
fn a_text_is_its_length_and_bytes() {
    assert_eq!(text("ab"), [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
}
