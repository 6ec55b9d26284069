//! `docs/manifest.schema.json` is generated from the manifest's types.

use bam_convert::checkpoint::Manifest;

#[test]
fn the_published_schema_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/manifest.schema.json");
    let schema = schemars::schema_for!(Manifest);
    let mut generated = serde_json::to_string_pretty(&schema).unwrap();
    generated.push('\n');
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        std::fs::write(path, &generated).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap();
    assert!(published == generated, "run `UPDATE_SCHEMA=1 cargo test --test schema` and commit {path}");
}
