//! YAML: a family's format, and a recipe.
#![no_main]

use std::path::Path;

use bam_convert::family::Family;
use bam_convert::pipeline::Recipe;
use bam_convert_fuzz::{bounded, file};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let path = file("recipe.yaml", data);
    bounded(data.len(), || {
        if let Ok(text) = std::str::from_utf8(data) {
            let _ = Family::from_yaml(Path::new("format.yaml"), text);
        }
        if let Ok(recipe) = Recipe::read(&path) {
            let _ = recipe.work(None);
        }
    });
});
