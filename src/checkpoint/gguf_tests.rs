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

fn refusal(bytes: &[u8]) -> String {
    read(bytes).unwrap_err().to_string()
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
    let problem = gguf
        .unsigned("general.architecture")
        .unwrap_err()
        .to_string();
    assert_eq!(
        problem,
        "m.gguf: key `general.architecture`: expected a whole number from 0 up, found \"llama\""
    );
    assert!(
        gguf.texts("kinds")
            .unwrap_err()
            .to_string()
            .contains("a list of 2 I32 values")
    );
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
    assert!(refusal(&bytes).contains("declares 6 metadata keys and 18446744073709551615 tensors"));
    let huge = |kind: u32| [&kind.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    for kind in [0, 8, 12] {
        let problem = refusal(&Build::new().raw("long", 9, &huge(kind)).bytes());
        assert!(
            problem.contains("key `long`") && problem.contains("18446744073709551615"),
            "{problem}"
        );
    }
    assert!(
        refusal(&Build::new().raw("long", 8, &u64::MAX.to_le_bytes()).bytes())
            .contains("key `long`: a text takes")
    );
}

#[test]
fn duplicates_are_refused_by_name() {
    let key = refusal(&small().u32("eps", 1).bytes());
    assert!(key.contains("key `eps`: is there twice"), "{key}");
    let tensor = refusal(&small().zeros("a.weight", &[1]).bytes());
    assert!(
        tensor.contains("tensor `a.weight`: is listed twice"),
        "{tensor}"
    );
}

#[test]
fn nonsense_values_are_refused_by_key() {
    for (kind, value, says) in [
        (99, vec![], "value type from 0 to 12, found 99"),
        (7, vec![2], "0 or 1, found [2]"),
        (8, vec![1, 0, 0, 0, 0, 0, 0, 0, 0xff], "not UTF-8"),
        (
            9,
            [&9_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0; 12]].concat(),
            "list of lists",
        ),
    ] {
        let problem = refusal(&Build::new().raw("odd", kind, &value).bytes());
        assert!(
            problem.contains("key `odd`") && problem.contains(says),
            "{problem}"
        );
    }
    for alignment in [0, 3] {
        let problem = refusal(&small().u32("general.alignment", alignment).bytes());
        assert!(
            problem.contains(&format!("expected a power of two, found {alignment}")),
            "{problem}"
        );
    }
    assert!(refusal(&small().u32("split.count", 2).bytes()).contains("one of 2 parts"));
}

#[test]
fn nonsense_tensors_are_refused_by_name() {
    for (shape, kind, says) in [
        (&[1, 1, 1, 1, 1][..], 0, "at most 4 dimensions, found 5"),
        (
            &[2, 33],
            2,
            "rows of a multiple of 32 elements (Q4_0), found 33",
        ),
        (&[u64::MAX, 2], 0, "more elements than can be counted"),
        (&[1 << 60, 32], 0, "more elements than can be counted"),
        (&[1 << 40], 0, "pass the end of the file"),
        (
            &[1],
            39,
            "rows of a multiple of 32 elements (MXFP4), found 1",
        ),
        (&[1], 7777, "type unknown (ggml type 7777)"),
    ] {
        let problem = refusal(&small().tensor("odd", shape, kind, vec![]).bytes());
        assert!(
            problem.contains("tensor `odd`") && problem.contains(says),
            "{problem}"
        );
    }
}

#[test]
fn offsets_outside_the_file_or_inside_another_tensor_are_refused() {
    for (offsets, says) in [
        ([0, 64], "inside the data of `a.weight`"),
        ([0, 1 << 40], "pass the end of the file"),
        ([0, u64::MAX - 31], "pass the end of the file"),
        ([0, 130], "multiple of 32 bytes, found offset 130"),
    ] {
        let problem = refusal(&small().bytes_with_offsets(&offsets));
        assert!(
            problem.contains("tensor `b.weight`") && problem.contains(says),
            "{problem}"
        );
    }
}

#[test]
fn other_files_and_versions_are_refused() {
    assert!(refusal(b"PK\x03\x04 and so on and on and on").contains("found `PK\\x03\\x04`"));
    for (version, says) in [
        (1, "version 1"),
        (4, "version 4"),
        (3_u32.swap_bytes(), "big-endian"),
    ] {
        let problem = refusal(&Build { version, ..small() }.bytes());
        assert!(problem.contains(says), "{problem}");
    }
    assert!(
        read(
            &Build {
                version: 2,
                ..small()
            }
            .bytes()
        )
        .is_ok()
    );
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
    assert!(
        gguf.small_tensor("a.weight")
            .unwrap_err()
            .to_string()
            .contains("Q8_0")
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
