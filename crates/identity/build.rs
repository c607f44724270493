//! Generates the certificate service from its proto.
//!
//! In: `proto/istio/v1/auth/ca.proto`. Out: a file in `OUT_DIR` that `lib.rs` includes.
//!
//! **Invariant:** writes only to `OUT_DIR`; needs no protoc.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const PROTO: &str = "istio/v1/auth/ca.proto";
    let here = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let folder = here.join("../../proto");
    for path in [here.join("build.rs"), folder.join(PROTO)] {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    let descriptors = protox::compile([PROTO], [folder])?;
    tonic_prost_build::configure()
        .out_dir(std::env::var("OUT_DIR")?)
        .include_file("identity.rs")
        .compile_fds_with_config(descriptors, prost_build::Config::new())?;
    Ok(())
}
