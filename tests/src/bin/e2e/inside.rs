//! Requests from within a pod: this program again, in the pod's network, as its application.
//!
//! **Invariant:** what it sends is captured as whatever the pod sends; it ends with its owner.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use house::client::Client;
use house::load::{Counts, Traffic};
use serde_json::Value;

use crate::cluster::Cluster;

/// Sends without pause until its input ends; prints what came back.
pub(crate) const CLIENT: &str = "--client";
/// Sends one request; prints status and body.
pub(crate) const GET: &str = "--get";

/// A pod, as its application sees it.
#[derive(Debug)]
pub(crate) struct Inside {
    /// Of the application.
    process: String,
    network: String,
    myself: PathBuf,
}

/// This program in the network of a pod, until its input ends.
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

/// Requests without pause from within a pod.
pub(crate) struct InsideTraffic(Running);

pub(crate) fn client(address: &str, host: &str) -> Result<ExitCode> {
    let address: SocketAddr = address.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut traffic = Traffic::start(address, host);
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        println!("{}", serde_json::to_string(&traffic.end().await?)?);
        Ok(ExitCode::SUCCESS)
    })
}

pub(crate) fn get(address: &str, host: &str, path: &str) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(Client::new(address.parse()?).get(host, path))?;
    println!("{}", answer.status.as_u16());
    std::io::stdout().write_all(&answer.body)?;
    Ok(ExitCode::SUCCESS)
}

// === impl Inside ===

impl Inside {
    /// That of a pod whose container runs.
    pub(crate) fn of(cluster: &Cluster, namespace: &str, pod: &str) -> Result<Self> {
        let found = cluster.get(&["pod", pod, "-n", namespace])?;
        let statuses = &found["status"]["containerStatuses"];
        let running = statuses.as_array().into_iter().flatten();
        let mut ids =
            running.filter_map(|s| s["containerID"].as_str()?.strip_prefix("containerd://"));
        let id = ids.next().with_context(|| format!("a container of {pod}: {statuses}"))?;
        let name = std::env::var("CLUSTER")?;
        let socket = format!("/run/heddle-clusters/{name}/containerd.sock");
        let tasks = cluster.run("ctr", &["-a", &socket, "-n", "k8s.io", "tasks", "ls"], "")?;
        let row = tasks.lines().find(|line| line.starts_with(id));
        let process = row.and_then(|row| row.split_whitespace().nth(1));
        let process = process.with_context(|| format!("{id} of {pod} in {tasks}"))?;
        let network = format!("--net=/proc/{process}/ns/net");
        Ok(Self { process: process.to_owned(), network, myself: std::env::current_exe()? })
    }

    /// One request; status and body.
    pub(crate) fn get(
        &self,
        cluster: &Cluster,
        address: SocketAddr,
        host: &str,
        path: &str,
    ) -> Result<(u16, Value)> {
        let myself = self.myself.display().to_string();
        let address = address.to_string();
        let args = [&self.network, "--", &myself, GET, &address, host, path];
        let said = cluster.run("nsenter", &args, "")?;
        let (status, body) = said.split_once('\n').context("a status")?;
        let text = || Value::from(body.trim());
        Ok((status.parse()?, serde_json::from_str(body).unwrap_or_else(|_| text())))
    }

    /// Kill the processes of this name that are in this network; how many there were.
    pub(crate) fn kill(&self, cluster: &Cluster, name: &str) -> Result<usize> {
        let own = |path: &str| std::fs::read_link(path).ok();
        let network = own(self.network.trim_start_matches("--net="));
        let mut killed = 0;
        for entry in std::fs::read_dir("/proc")? {
            let process = entry?.file_name().to_string_lossy().into_owned();
            let folder = format!("/proc/{process}");
            let called = std::fs::read_to_string(format!("{folder}/comm")).unwrap_or_default();
            if called.trim() == name && own(&format!("{folder}/ns/net")) == network {
                cluster.run("kill", &["-9", &process], "")?;
                killed += 1;
            }
        }
        Ok(killed)
    }

    /// Where something is mounted, a path per line.
    pub(crate) fn mounts(&self) -> Result<String> {
        let all = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.process))?;
        let points = all.lines().filter_map(|line| line.split(' ').nth(4));
        Ok(points.collect::<Vec<_>>().join("\n"))
    }

    /// Unix sockets of the pod, as the kernel lists them.
    pub(crate) fn sockets(&self) -> Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/net/unix", self.process))?)
    }

    /// Requests without pause.
    pub(crate) fn traffic(&self, address: SocketAddr, host: &str) -> Result<InsideTraffic> {
        Ok(InsideTraffic(self.start(&[CLIENT, &address.to_string(), host])?))
    }

    /// Start this program again.
    pub(crate) fn start(&self, args: &[&str]) -> Result<Running> {
        let mut child = Command::new("nsenter")
            .arg(&self.network)
            .arg("--")
            .arg(&self.myself)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("its output")?);
        Ok(Running { child, stdin, stdout })
    }
}

// === impl Running ===

impl Running {
    /// The next line that it prints.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        Ok(line)
    }

    /// End it; what it prints from here on.
    pub(crate) fn stop(mut self) -> Result<String> {
        drop(self.stdin.take());
        let mut said = String::new();
        self.stdout.read_to_string(&mut said)?;
        let ended = self.child.wait()?;
        ensure!(ended.success(), "{ended}");
        Ok(said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl InsideTraffic ===

impl InsideTraffic {
    /// Stop, and fail if any request has. What came back.
    pub(crate) fn stop(self) -> Result<Counts> {
        let counts: Counts = serde_json::from_str(&self.0.stop()?)?;
        ensure!(counts.good()? > 0, "there were no requests");
        Ok(counts)
    }
}
