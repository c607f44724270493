//! The binary `heddle-controller`, run as a user runs it.
//!
//! **Invariant:** every child dies with its guard; every wait is for a condition, with a deadline;
//! every port is picked by the kernel.

#![allow(clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait and read files")]

mod admin;
mod bad_input;
mod files;
mod floods;
mod identity;
mod mesh_pages;
mod start;
mod xds;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes, so that a hang is a failure and not a wait.
const LIMIT: Duration = Duration::from_secs(30);

/// A Gateway, a VirtualService bound to it, the Service behind and its policy.
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
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: edge}
spec: {host: shop, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
"#;

/// A Service, the smallest object.
fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}]}}\n"
    )
}

/// Wait for a condition.
#[track_caller]
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A folder of files.
struct Folder(TempDir);

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
}

/// A child that dies with its guard.
struct Guard {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Guard {
    fn spawn(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heddle-controller"));
        for flag in ["xds", "http", "admin"] {
            if !args.iter().any(|a| a.starts_with(&format!("--{flag}-address"))) {
                command.arg(format!("--{flag}-address=127.0.0.1:0"));
            }
        }
        let child =
            command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("it runs");
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().expect("piped"));
        let shared = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let mut log = shared.lock().expect("no panic");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log, reader: Some(reader) }
    }

    fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// Wait for the end, and for everything that it said.
    fn wait(&mut self) -> ExitStatus {
        let status = until("the process to end", || self.child.try_wait().expect("a child"));
        if let Some(reader) = self.reader.take() {
            reader.join().expect("a reader");
        }
        status
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the controller ---\n{}", self.log());
        }
        assert!(!self.log().contains("panicked") || std::thread::panicking(), "{}", self.log());
    }
}

/// A controller that runs.
struct Controller {
    guard: Guard,
    xds: SocketAddr,
    /// Only with an authority.
    secure: Option<SocketAddr>,
    http: SocketAddr,
    admin: SocketAddr,
}

impl Controller {
    /// Start on a folder, and wait until it is ready.
    fn on(folder: &Path) -> Self {
        let found = Self::start(folder, &[]);
        until("readiness", || (found.public("/readyz").0 == 200).then_some(()));
        found
    }

    /// Start on a folder, and wait until it listens.
    fn start(folder: &Path, more: &[&str]) -> Self {
        let source = format!("--source=directory={}", folder.display());
        let mut args = vec![source.as_str(), "--log-format=json"];
        args.extend(more);
        let mut guard = Guard::spawn(&args);
        let addresses = until("its addresses in the log", || {
            if let Some(status) = guard.child.try_wait().expect("a child") {
                panic!("ended at once, {status}:\n{}", guard.log());
            }
            let log = guard.log();
            let line = log.lines().find(|l| l.contains("\"xds\""))?;
            let line: Value = serde_json::from_str(line).ok()?;
            let address = |key: &str| line[key].as_str()?.parse::<SocketAddr>().ok();
            Some((address("xds")?, address("secure"), address("http")?, address("admin")?))
        });
        let (xds, secure, http, admin) = addresses;
        Self { guard, xds, secure, http, admin }
    }

    fn public(&self, path: &str) -> (u16, String) {
        ask(self.http, "GET", path, "localhost")
    }

    fn debug(&self, path: &str) -> (u16, String) {
        ask(self.admin, "GET", path, "localhost")
    }

    /// What `/debug/configz` says.
    fn configz(&self) -> Value {
        let (status, body) = self.debug("/debug/configz");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Names of the objects, sorted.
    fn names(&self) -> Vec<String> {
        let found = self.configz();
        let objects = found["objects"].as_array().expect("a list").iter();
        let mut names: Vec<String> =
            objects.map(|o| o["name"].as_str().unwrap_or_default().to_owned()).collect();
        names.sort();
        names
    }

    /// Wait until these are the objects.
    #[track_caller]
    fn has(&self, names: &[&str]) {
        let mut last = Vec::new();
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            last = self.names();
            if last == names {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("objects are {last:?}, not {names:?}; {}", self.configz()["files"]);
    }

    /// Wait until a problem of a file holds these texts.
    #[track_caller]
    fn complains(&self, texts: &[&str]) {
        until(&format!("{texts:?} in the problems of files"), || {
            let files = self.configz()["files"].clone();
            let fits = |f: &Value| {
                let shown =
                    format!("{}:{} {}", f["file"], f["line"], f["message"]).replace('"', "");
                texts.iter().all(|t| shown.contains(t))
            };
            files.as_array()?.iter().any(fits).then_some(())
        });
    }

    /// Wait until no file has a problem.
    #[track_caller]
    fn is_content(&self) {
        until("no problems of files", || {
            (self.configz()["files"] == Value::Array(vec![])).then_some(())
        });
    }
}

/// One HTTP request: status and body.
fn ask(address: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String) {
    let (status, _, body) = exchange(address, method, path, host);
    (status, body)
}

/// One HTTP request: status, head and body.
fn exchange(address: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).expect("a status");
    (status, head.to_ascii_lowercase(), body.to_owned())
}
