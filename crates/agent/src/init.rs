//! `heddle-agent init`: redirects the connections of a pod to its proxy.
//!
//! In: what is to be captured. Out: rules in the network namespace that this runs in.
//!
//! nft comes first: it replaces the rules of both families in one step, in a table that is ours
//! alone, and needs no lock file, which a read-only root has no place for. iptables is for images
//! and kernels without it.
//!
//! **Invariant:** applied twice it is as applied once; what is not ours is left alone.

mod check;
mod iptables;
mod loopback;
mod nft;
mod rules;

use std::io::{self, Write as _};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};

use self::rules::{Interface, List, Port, Range, Rules, Which};

/// Arguments of `init`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Ports of the workload to capture: `*`, or some; an empty value is none
    #[arg(long, default_value = "*", value_name = "PORT,…")]
    include_inbound_ports: Which<Port>,
    /// Ports of the workload to leave alone
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PORT,…")]
    exclude_inbound_ports: List<Port>,
    /// Blocks of addresses to which connections are captured: `*`, or some
    #[arg(long, default_value = "*", value_name = "CIDR,…")]
    include_outbound_ip_ranges: Which<Range>,
    /// Blocks of addresses to leave alone
    #[arg(long, default_value = "", hide_default_value = true, value_name = "CIDR,…")]
    exclude_outbound_ip_ranges: List<Range>,
    /// Ports to which connections are captured wherever they lead
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PORT,…")]
    include_outbound_ports: List<Port>,
    /// Ports to leave alone wherever they lead
    #[arg(long, default_value = "", hide_default_value = true, value_name = "PORT,…")]
    exclude_outbound_ports: List<Port>,
    /// Interfaces whose connections are left alone, such as those of virtual machines; `tap+`
    /// stands for all that begin with tap
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME,…")]
    exclude_interfaces: List<Interface>,
    /// User that the proxy runs as: its connections are not captured again
    #[arg(long, default_value_t = 1337, value_name = "ID")]
    proxy_uid: u32,
    /// Group that the proxy runs as
    #[arg(long, default_value_t = 1337, value_name = "ID")]
    proxy_gid: u32,
    /// What sets the rules [default: nft, or iptables where there is no nft]
    #[arg(long, value_enum, value_name = "TOOL")]
    tool: Option<Tool>,
    /// Take the rules away
    #[arg(long, conflicts_with = "check")]
    clean: bool,
    /// Print what would be applied, and apply nothing
    #[arg(long, conflicts_with = "check")]
    dry_run: bool,
    /// Then prove that a connection is captured; fails if it is not
    #[arg(long)]
    check: bool,
}

/// What sets rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Tool {
    /// nftables
    Nft,
    /// iptables and ip6tables
    Iptables,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<()> {
    let rules = args.rules();
    let tool = args.tool.map_or_else(Tool::found, Ok)?;
    if args.dry_run {
        let text = if args.clean { tool.clean_text() } else { tool.text(&rules) };
        return io::stdout().write_all(text.as_bytes()).context("printing");
    }
    if args.clean {
        loopback::clean()?;
        return tool.clean();
    }
    loopback::set()?;
    tool.apply(&rules)?;
    if args.check {
        check::run(&rules)?;
    }
    Ok(())
}

// === impl Args ===

impl Args {
    fn rules(&self) -> Rules {
        let ports = |List(ports): &List<Port>| ports.iter().map(|Port(port)| *port).collect();
        Rules {
            inbound_ports: self.include_inbound_ports.clone().map(|Port(port)| port),
            excluded_inbound_ports: ports(&self.exclude_inbound_ports),
            outbound_ranges: self.include_outbound_ip_ranges.clone().map(|Range(range)| range),
            excluded_outbound_ranges: {
                self.exclude_outbound_ip_ranges.0.iter().map(|Range(range)| *range).collect()
            },
            outbound_ports: ports(&self.include_outbound_ports),
            excluded_outbound_ports: ports(&self.exclude_outbound_ports),
            excluded_interfaces: {
                self.exclude_interfaces.0.iter().map(|Interface(name)| name.clone()).collect()
            },
            user: self.proxy_uid,
            group: self.proxy_gid,
        }
    }
}

// === impl Tool ===

impl Tool {
    /// The first that is installed.
    fn found() -> Result<Self> {
        for (tool, program) in [(Self::Nft, "nft"), (Self::Iptables, "iptables")] {
            let version = Command::new(program).arg("--version").output();
            if version.is_ok_and(|output| output.status.success()) {
                return Ok(tool);
            }
        }
        bail!("neither nft nor iptables is installed; install nftables")
    }

    fn text(self, rules: &Rules) -> String {
        match self {
            Self::Nft => nft::script(rules),
            Self::Iptables => {
                let [four, six] = [false, true].map(|ipv6| iptables::restore(rules, ipv6));
                format!("# iptables-restore\n{four}# ip6tables-restore\n{six}")
            }
        }
    }

    fn clean_text(self) -> String {
        match self {
            Self::Nft => nft::clean(),
            Self::Iptables => {
                let commands = iptables::CHAINS.map(|(hook, chain)| {
                    format!(
                        "-t nat -D {hook} -p tcp -j {chain}\n-t nat -F {chain}\n-t nat -X {chain}\n"
                    )
                });
                commands.concat()
            }
        }
    }

    fn apply(self, rules: &Rules) -> Result<()> {
        match self {
            Self::Nft => feed("nft", &["--file", "-"], &nft::script(rules)),
            Self::Iptables => {
                for (ipv6, program) in families() {
                    let restore = format!("{program}-restore");
                    let text = iptables::restore(rules, ipv6);
                    feed(&restore, &["--noflush", "--wait"], &text)?;
                    for (hook, chain) in iptables::CHAINS {
                        let jump = |verb| ["-w", "-t", "nat", verb, hook, "-p", "tcp", "-j", chain];
                        if !is_good(program, &jump("-C")) {
                            feed(program, &jump("-A"), "")?;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn clean(self) -> Result<()> {
        match self {
            Self::Nft => feed("nft", &["--file", "-"], &nft::clean()),
            Self::Iptables => {
                for (_, program) in families() {
                    for (hook, chain) in iptables::CHAINS {
                        // None of them need be there.
                        while is_good(
                            program,
                            &["-w", "-t", "nat", "-D", hook, "-p", "tcp", "-j", chain],
                        ) {}
                        let empties = ["-F", "-X"].map(|verb| ["-w", "-t", "nat", verb, chain]);
                        let there = is_good(program, &["-w", "-t", "nat", "-n", "-L", chain]);
                        for empty in empties.iter().filter(|_| there) {
                            feed(program, empty, "")?;
                        }
                    }
                }
                Ok(())
            }
        }
    }
}

/// The programs, and whether each is that of IPv6; where there is no IPv6 it has no rules.
fn families() -> impl Iterator<Item = (bool, &'static str)> {
    let six = loopback::has_ipv6();
    [(false, "iptables"), (true, "ip6tables")].into_iter().filter(move |(ipv6, _)| !ipv6 || six)
}

/// Whether a command works; what it says does not matter.
fn is_good(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// Run a command that reads a text.
fn feed(program: &str, args: &[&str], text: &str) -> Result<()> {
    let name = || format!("running {program} {}", args.join(" "));
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(name)?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ends before it has read all says why itself.
        let _ = input.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().with_context(name)?;
    let said = String::from_utf8_lossy(&output.stderr);
    let help = match said.contains("not permitted") || said.contains("ermission denied") {
        true => "; it needs CAP_NET_ADMIN",
        false => "",
    };
    if !output.status.success() {
        let why = anyhow!("{}: {}{help}", output.status, said.trim());
        return Err(why).with_context(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
