//! Finds and parses the proto files.
//!
//! In: root paths. Out: a resolver for protox that holds every file they need, with type
//! references made absolute.
//!
//! **Invariant:** no proto text of others is copied into the project; it is read from the folder
//! of the package `envoy-types`, whose version Cargo.lock pins.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};
use protox::file::{File, FileResolver, GoogleFileResolver};

type Failure = Box<dyn std::error::Error>;

/// Folders below `proto/` of the package, in the order in which a path is looked up.
const FOLDERS: &[&str] = &[
    "data-plane-api",
    "xds",
    "protoc-gen-validate",
    "googleapis",
    "client_model",
    "opentelemetry-proto",
    "cel-spec/proto",
];

/// Parsed files by their import path.
pub(crate) struct Sources {
    files: BTreeMap<String, FileDescriptorProto>,
}

/// Include folders: ours first, then those of the pinned package.
pub(crate) fn include_folders(ours: PathBuf) -> Result<Vec<PathBuf>, Failure> {
    let package = package_folder("envoy-types")?;
    let mut folders = vec![ours];
    folders.extend(FOLDERS.iter().map(|folder| package.join("proto").join(folder)));
    Ok(folders)
}

/// Folder of a package of Cargo.lock. Cargo answers from inside a build script too: reading
/// metadata takes no build lock.
fn package_folder(name: &str) -> Result<PathBuf, Failure> {
    let cargo = std::env::var_os("CARGO").ok_or("CARGO is not set")?;
    let metadata = |offline: bool| -> Result<serde_json::Value, Failure> {
        let mut command = Command::new(&cargo);
        command.args(["metadata", "--format-version", "1"]);
        if offline {
            command.arg("--offline");
        }
        let output = command.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    // Offline fails where packages of other platforms were never downloaded.
    let metadata = metadata(true).or_else(|_| metadata(false))?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == name)
        .and_then(|package| package["manifest_path"].as_str())
        .ok_or_else(|| format!("package {name} is not in Cargo.lock"))?;
    Ok(Path::new(manifest).parent().unwrap_or(Path::new("")).to_path_buf())
}

// === impl Sources ===

impl Sources {
    /// Read `roots` and everything they import.
    pub(crate) fn load(roots: &[&str], folders: &[PathBuf]) -> Result<Self, Failure> {
        let mut files = BTreeMap::new();
        let mut open: Vec<String> = roots.iter().map(|root| (*root).to_owned()).collect();
        while let Some(path) = open.pop() {
            if files.contains_key(&path) || is_google(&path) {
                continue;
            }
            let found = folders
                .iter()
                .map(|folder| folder.join(&path))
                .find(|candidate| candidate.exists())
                .ok_or_else(|| format!("{path} is in no include folder"))?;
            let text = std::fs::read_to_string(found)?;
            let file = File::from_source(&path, &text)?.file_descriptor_proto().clone();
            open.extend(file.dependency.iter().cloned());
            files.insert(path, file);
        }
        let mut sources = Self { files };
        sources.make_absolute();
        Ok(sources)
    }

    /// Spell every type reference from the root.
    ///
    /// protox follows the letter of the name rules: `config.core.v3.X` inside
    /// `envoy.extensions.a` stops at the package `envoy.extensions.config` as soon as any file
    /// of that package is open. Envoy's own build goes on to `envoy.config`.
    fn make_absolute(&mut self) {
        let mut types = HashSet::new();
        for file in self.files.values() {
            for message in &file.message_type {
                collect(file.package(), message, &mut types);
            }
            types.extend(file.enum_type.iter().map(|e| join(file.package(), e.name())));
        }
        for file in self.files.values_mut() {
            let package = file.package().to_owned();
            for message in &mut file.message_type {
                let scope = join(&package, message.name());
                absolute_message(message, &scope, &types);
            }
            for extension in &mut file.extension {
                absolute_field(extension, &package, &types);
            }
        }
    }
}

impl FileResolver for Sources {
    fn open_file(&self, name: &str) -> Result<File, protox::Error> {
        if is_google(name) {
            return GoogleFileResolver::new().open_file(name);
        }
        self.files
            .get(name)
            .map(|file| File::from_file_descriptor_proto(file.clone()))
            .ok_or_else(|| protox::Error::file_not_found(name))
    }
}

fn is_google(path: &str) -> bool {
    path.starts_with("google/protobuf/")
}

fn join(scope: &str, name: &str) -> String {
    if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") }
}

fn collect(scope: &str, message: &DescriptorProto, types: &mut HashSet<String>) {
    let scope = join(scope, message.name());
    for nested in &message.nested_type {
        collect(&scope, nested, types);
    }
    types.extend(message.enum_type.iter().map(|e| join(&scope, e.name())));
    types.insert(scope);
}

fn absolute_message(message: &mut DescriptorProto, scope: &str, types: &HashSet<String>) {
    for field in message.field.iter_mut().chain(&mut message.extension) {
        absolute_field(field, scope, types);
    }
    for nested in &mut message.nested_type {
        let scope = join(scope, nested.name());
        absolute_message(nested, &scope, types);
    }
}

fn absolute_field(field: &mut FieldDescriptorProto, scope: &str, types: &HashSet<String>) {
    let Some(name) = field.type_name.as_mut().filter(|name| !name.starts_with('.')) else {
        return;
    };
    let mut scope = Some(scope);
    while let Some(here) = scope {
        let candidate = join(here, name);
        if types.contains(&candidate) {
            *name = format!(".{candidate}");
            return;
        }
        scope = match here.rfind('.') {
            Some(dot) => Some(&here[..dot]),
            None if here.is_empty() => None,
            None => Some(""),
        };
    }
}
