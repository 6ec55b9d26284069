//! The schemas under `docs/` are generated: the schema of recipes from the command line, the others from types.

use bam_convert::checkpoint::Manifest;
use bam_convert::data::TokenHeader;

#[test]
fn the_published_schemas_are_those_of_the_code() {
    let pretty = |schema: schemars::Schema| serde_json::to_string_pretty(&schema).unwrap() + "\n";
    let schemas = [
        ("manifest", pretty(schemars::schema_for!(Manifest))),
        (
            "token-folder-header",
            pretty(schemars::schema_for!(TokenHeader)),
        ),
        ("recipe", crate::common::bam!("run", "--schema").ok().stdout),
    ];
    for (name, generated) in schemas {
        let path = format!("{}/docs/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        let published = std::fs::read_to_string(&path).unwrap();
        assert!(
            published == generated,
            "run `UPDATE_SCHEMA=1 cargo test --test it schema::` and commit {path}"
        );
    }
}
