//! `heddle ca status`.
//!
//! **Invariant:** prints what the controller says; decides nothing.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::Value;

use crate::{admin, output};

/// Arguments of `ca status`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Admin endpoint of the controller
    #[arg(long, env = "HEDDLE_ADMIN", default_value = "127.0.0.1:8080", value_name = "HOST:PORT")]
    admin: String,
    /// Print the page as JSON
    #[arg(long)]
    json: bool,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let address = args.admin.trim_start_matches("http://").trim_end_matches('/');
    let page = admin::get(address, "/debug/ca")?;
    if args.json {
        output::json(&page)?;
    } else {
        output::print(&text(&page))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(page: &Value) -> String {
    let show = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let issuer = &page["issuer"];
    let kind = if issuer["selfSigned"] == true { ", self-signed" } else { "" };
    let mut out = format!(
        "trust domain  {}\nissuer        {} ({}{kind})\n              ends {}\n",
        show(&page["trustDomain"]),
        show(&issuer["subject"]),
        show(&issuer["key"]),
        show(&issuer["notAfter"]),
    );
    for root in page["roots"].as_array().map(Vec::as_slice).unwrap_or_default() {
        out += &format!(
            "root          {}\n              ends {}\n",
            show(&root["subject"]),
            show(&root["notAfter"])
        );
    }
    out += &format!("issued        {} of {}\n", show(&page["issued"]), show(&page["requests"]));
    for (reason, count) in page["refused"].as_object().into_iter().flatten() {
        out += &format!("refused       {count} {reason}\n");
    }
    out
}
