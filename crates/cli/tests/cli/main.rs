//! The binary `heddle`, run as a user runs it.
//!
//! **Invariant:** each test has a folder of its own and looks at exit code, output and messages.

#![allow(clippy::expect_used, clippy::panic, clippy::disallowed_methods, reason = "tests")]

mod bad_input;
mod commands;
mod config;
mod identity;
mod inject;
mod render;
mod validate;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const NODE: &str = "router~10.0.0.9~gw-1.edge~edge.svc.cluster.local";

/// A Gateway, a VirtualService bound to it, the Service behind: enough for a route.
const MESH: &str = r#"apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: edge}
spec:
  selector: {app: gw}
  servers: [{port: {number: 8080, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: edge}
spec:
  hosts: [shop.example.com]
  gateways: [edge]
  http:
  - route: [{destination: {host: shop}}]
---
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: edge}
spec: {ports: [{port: 80, name: http}]}
"#;

/// A folder of files.
struct Folder(TempDir);

/// What a run came to.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn with(name: &str, text: impl AsRef<[u8]>) -> Self {
        let folder = Self::new();
        folder.write(name, text);
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        std::fs::write(&path, text).expect("written");
        path
    }

    /// Render what is here for the usual proxy, with more arguments.
    fn render(&self, more: &[&str]) -> Ran {
        let mut args = vec!["render", "-f", ".", "--node", NODE, "--labels", "app=gw"];
        args.extend(more);
        self.run(&args)
    }

    fn run(&self, args: &[&str]) -> Ran {
        let output = self.command(args).output().expect("it runs");
        Ran::from(output)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heddle"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null()).env_remove("HEDDLE_ADMIN");
        command
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let ran =
            Self { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) };
        assert!(!ran.err.contains("panicked"), "{}", ran.err);
        ran
    }
}

impl Ran {
    /// The dump; it is whole whatever was wrong.
    fn dump(&self) -> Value {
        let dump: Value = serde_json::from_str(&self.out).expect("JSON on standard output");
        assert!(dump["configs"].is_array(), "{dump}");
        dump
    }

    /// Exit code, and whether each text is in the messages.
    #[track_caller]
    fn says(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.err);
        for text in texts {
            assert!(self.err.contains(text), "{text:?} is not in:\n{}", self.err);
        }
    }
}
