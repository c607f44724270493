//! `heddle status`: which proxies are connected, and whether they have what they should.
//!
//! **Invariant:** prints what the controller says; decides nothing.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::{admin, output, report};

/// Arguments of `status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Admin endpoint of the controller
    #[arg(long, env = "HEDDLE_ADMIN", default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    admin: String,
    #[command(flatten)]
    cluster: Cluster,
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

const TYPES: [&str; 5] = ["CDS", "EDS", "LDS", "RDS", "VHDS"];

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let answer = ask(args)?;
    match args.output {
        Format::Json => output::json(&answer)?,
        Format::Yaml => output::yaml(&answer)?,
        Format::Table => output::print(&table(&answer).to_string())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The streams of one controller, or of all of a cluster: then each says whose it is.
fn ask(args: &Args) -> Result<Value> {
    const PAGE: &str = "/debug/syncz";
    if !args.cluster.is_given() {
        let address = args.admin.trim_start_matches("http://").trim_end_matches('/');
        return admin::get(address, PAGE);
    }
    let mut streams = Vec::new();
    for answer in admin::wait_for(args.cluster.ask(PAGE))? {
        match answer.page {
            Ok(Value::Array(of_one)) => streams.extend(of_one.into_iter().map(|mut stream| {
                stream["controller"] = Value::String(answer.controller.clone());
                stream
            })),
            Ok(other) => bail!("{} answered {other}, not a list", answer.controller),
            Err(error) => report::note(&format!(
                "{} does not answer, so its proxies are not in the list: {error:#}",
                answer.controller
            )),
        }
    }
    streams.sort_by_key(|stream| stream["proxy"].to_string());
    Ok(Value::Array(streams))
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
