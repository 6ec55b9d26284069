//! The configuration of a LoRA adapter, beside an adapter and a base that fit.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use bam_convert::checkpoint::Checkpoint;
use bam_convert::checkpoint::views::View;
use bam_convert_fuzz::{bounded, file, folder_with};
use libfuzzer_sys::fuzz_target;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures");

/// The folder that shows the base with the adapter, made once.
static VIEW: LazyLock<std::path::PathBuf> = LazyLock::new(|| {
    let weights = Path::new(FIXTURES).join("adapters/patterns/adapter_model.safetensors");
    let bytes = std::fs::read(weights).expect("a fixture");
    let adapter = folder_with("adapter_model.safetensors", &bytes);
    let view = View {
        base: Path::new(FIXTURES).join("llama/seed"),
        adapters: vec![adapter.to_path_buf()],
    };
    view.make(&adapter.join("views")).expect("a view")
});

fuzz_target!(|data: &[u8]| {
    let view = &*VIEW;
    file("adapter_config.json", data);
    bounded(data.len(), || {
        let _ = Checkpoint::open(view);
    });
});
