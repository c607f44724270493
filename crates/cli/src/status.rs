//! `heddle status`: which proxies are connected, and whether they have what they should; or who
//! connects to workloads without mutual TLS.
//!
//! **Invariant:** prints what controllers and agents say; decides nothing.

mod mutual_tls;

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::controllers::Controllers;
use crate::{output, report};

/// Arguments of `status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    controllers: Controllers,
    /// Show who connects to workloads without mutual TLS, as their sidecars count connections;
    /// with --namespace to those of one namespace
    #[arg(long, requires = "kubernetes")]
    mtls: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

/// The agent's page with its own metrics.
const OWN_METRICS: &str = "/stats/agent";

const TYPES: [&str; 5] = ["CDS", "EDS", "LDS", "RDS", "VHDS"];

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.mtls {
        return without_mutual_tls(args);
    }
    let (streams, silent) = args.controllers.streams()?;
    silent.iter().for_each(|why| report::note(why));
    let answer = Value::Array(streams);
    args.output.print(&answer, || table(&answer))
}

fn without_mutual_tls(args: &Args) -> Result<ExitCode> {
    let (pods, pages) = args.controllers.agents(mutual_tls::is_injected, OWN_METRICS)?;
    let (workloads, silent) = mutual_tls::workloads(&pods, &pages);
    silent.iter().for_each(|why| report::note(why));
    args.output.print(&workloads, || mutual_tls::table(&workloads))
}

// === impl Format ===

impl Format {
    fn print(self, answer: &impl Serialize, table: impl Fn() -> Table) -> Result<ExitCode> {
        match self {
            Self::Json => output::json(answer)?,
            Self::Yaml => output::yaml(answer)?,
            Self::Table => output::print(&table().to_string())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn table(answer: &Value) -> Table {
    let mut table = Table::new();
    let of_cluster =
        answer.as_array().is_some_and(|s| s.iter().any(|s| !s["controller"].is_null()));
    let controller = of_cluster.then_some("CONTROLLER");
    let header = ["PROXY", "PROTOCOL"].into_iter().chain(TYPES).chain(controller).chain(["ERROR"]);
    table.load_style(presets::NOTHING).set_header(header);
    for stream in answer.as_array().map(Vec::as_slice).unwrap_or_default() {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut row = vec![text(&stream["proxy"]), text(&stream["protocol"])];
        let mut error = String::new();
        for name in TYPES {
            let state = &stream["types"][name];
            row.push(state["state"].as_str().unwrap_or("-").to_owned());
            if let Some(why) = state["error"].as_str().filter(|e| !e.is_empty()) {
                error = format!("{name}: {why}");
            }
        }
        row.extend(of_cluster.then(|| text(&stream["controller"])));
        row.push(error);
        table.add_row(row);
    }
    table
}
