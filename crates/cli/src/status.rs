//! `heddle status`: which proxies are connected, and whether they have what they should.
//!
//! **Invariant:** prints what the controller says; decides nothing.

use std::process::ExitCode;

use anyhow::Result;
use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::Value;

use crate::controllers::Controllers;
use crate::{output, report};

/// Arguments of `status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    controllers: Controllers,
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
    let (streams, silent) = args.controllers.streams()?;
    silent.iter().for_each(|why| report::note(why));
    let answer = Value::Array(streams);
    match args.output {
        Format::Json => output::json(&answer)?,
        Format::Yaml => output::yaml(&answer)?,
        Format::Table => output::print(&table(&answer).to_string())?,
    }
    Ok(ExitCode::SUCCESS)
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
