//! The schemas under `docs/` are generated from the types of what they describe, that of recipes from the command line.

#![allow(clippy::unwrap_used)]

mod common;

use bam_convert::checkpoint::Manifest;
use bam_convert::data::Header;

#[test]
fn the_published_schemas_are_those_of_the_code() {
    let schemas = [
        ("manifest", schemars::schema_for!(Manifest).to_value()),
        ("token-folder-header", schemars::schema_for!(Header).to_value()),
        ("recipe", common::bam!("run", "--schema").ok().json()),
    ];
    for (name, schema) in schemas {
        let path = format!("{}/docs/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
        let mut generated = serde_json::to_string_pretty(&schema).unwrap();
        generated.push('\n');
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap();
        assert!(published == generated, "run `UPDATE_SCHEMA=1 cargo test --test schema` and commit {path}");
    }
}
