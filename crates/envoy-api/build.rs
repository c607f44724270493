//! Generates the Envoy types, the discovery stubs, the descriptors and the field-rule tables.
//!
//! In: the proto files named in `build/roots.rs`. Out: files in `OUT_DIR` that `lib.rs` and
//! `check` include.
//!
//! **Invariant:** writes only to `OUT_DIR`; needs no protoc and no network once the packages of
//! Cargo.lock are downloaded.

#[path = "build/roots.rs"]
mod roots;
#[path = "build/rules.rs"]
mod rules;
#[path = "build/sources.rs"]
mod sources;

use std::path::{Path, PathBuf};

use prost::Message as _;

/// The files whose services get a client and a server.
const SERVICES: [&str; 3] = [
    "envoy/service/accesslog/v3/als.proto",
    "envoy/service/discovery/v3/ads.proto",
    "envoy/service/secret/v3/sds.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let workspace = here.join("../..");
    // Cargo.lock, because a package that is never compiled triggers nothing by itself.
    for path in ["build.rs", "build", "../../proto", "../../Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", here.join(path).display());
    }

    let folders = sources::include_folders(workspace.join("proto"))?;
    let sources = sources::Sources::load(roots::ROOTS, &folders)?;
    let mut compiler = protox::Compiler::with_file_resolver(sources);
    compiler.include_source_info(false).include_imports(true).open_files(roots::ROOTS)?;

    std::fs::write(out.join("rules.rs"), rules::tables(&compiler.descriptor_pool())?)?;

    // Decoding into prost's types drops custom options: the embedded descriptors stay small.
    let mut descriptors = compiler.file_descriptor_set();
    for file in &mut descriptors.file {
        if !SERVICES.contains(&file.name()) {
            file.service.clear();
        }
    }
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    generate_types(descriptors, &out)?;
    Ok(())
}

fn generate_types(
    descriptors: prost_types::FileDescriptorSet,
    out: &Path,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut config = prost_build::Config::new();
    config
        .enable_type_names()
        // Envoy refuses a type URL without the domain.
        .type_name_domain(["."], "type.googleapis.com")
        .extern_path(".google.protobuf.Any", "crate::any::Any")
        .btree_map(["."])
        .bytes(["."]);
    tonic_prost_build::configure()
        .out_dir(out)
        .include_file("envoy_api.rs")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
