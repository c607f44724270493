//! `heddle config`: what a proxy is sent, and which object and field each part of it comes from.
//!
//! In: the dump that the controller of the proxy makes. Out: tables for people, or the dump itself,
//! of the parts that were asked for.
//!
//! **Invariant:** prints what the controller says; decides nothing.

mod select;
mod table;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::ValueEnum;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::controllers::Controllers;
use crate::{output, report};
use select::Filter;

/// Arguments of `config`.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  heddle config edge-0.default routes                  which rule decides about which request
  heddle config edge all --fqdn reviews.default        all that leads to a service
  heddle config default/edge clusters --port 80 -o json
  heddle config edge routes --kubernetes               in a cluster, whichever replica serves it

FROM names the object and the field that a row comes from, the most decisive first.
What a proxy has accepted of this, and what it has rejected, `heddle status` says.")]
pub(crate) struct Args {
    /// Its id, NAME.NAMESPACE, NAMESPACE/NAME or NAME; a beginning will do if no other proxy has it
    proxy: String,
    /// What to show
    #[arg(value_enum, default_value_t = Kind::All)]
    kind: Kind,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    controllers: Controllers,
    /// Output format; json and yaml have the shape of Envoy's own dump
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// A part of a proxy's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    #[value(aliases = ["listener", "l", "lds"])]
    Listeners,
    #[value(aliases = ["route", "r", "rds"])]
    Routes,
    #[value(aliases = ["cluster", "c", "cds"])]
    Clusters,
    #[value(aliases = ["endpoint", "ep", "eds"])]
    Endpoints,
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

/// Run the command.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (streams, silent) = args.controllers.streams()?;
    silent.iter().for_each(|why| report::note(why));
    let stream = find(&streams, &args.proxy)?;
    let id = stream["proxy"].as_str().unwrap_or_default();
    let path = format!("/debug/config_dump?proxyID={}", utf8_percent_encode(id, NON_ALPHANUMERIC));
    let dump = args.controllers.ask_one(stream["controller"].as_str(), &path)?;
    let dump = select::select(dump, args.kind, &args.filter);
    if select::is_empty(&dump) {
        report::note(&format!("{id} is sent nothing that fits"));
    }
    match args.output {
        Format::Json => output::json(&dump)?,
        Format::Yaml => output::yaml(&dump)?,
        Format::Table => output::print(&table::text(&dump, args.kind))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The stream of the proxy that is meant: of several streams of one proxy, the newest.
fn find<'a>(streams: &'a [Value], wanted: &str) -> Result<&'a Value> {
    let ids = |fits: &dyn Fn(&str) -> bool| {
        let of = |stream: &'a Value| {
            stream["proxy"].as_str().filter(|id| names(id).iter().any(|n| fits(n)))
        };
        let mut ids: Vec<&str> = streams.iter().filter_map(of).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    let mut found = ids(&|name| name == wanted);
    if found.is_empty() {
        found = ids(&|name| name.starts_with(wanted));
    }
    match found[..] {
        [id] => {
            let of_proxy = streams.iter().filter(|s| s["proxy"] == id);
            let newest = of_proxy.max_by_key(|s| {
                (s["connectedSince"].as_str().unwrap_or_default().to_owned(), s["stream"].as_u64())
            });
            Ok(newest.unwrap_or(&Value::Null))
        }
        [] if streams.is_empty() => bail!("no proxy is connected; `heddle status` lists them"),
        [] => bail!("no proxy {wanted:?} is connected; there is {}", listed(&ids(&|_| true))),
        _ => bail!("{wanted:?} may be any of {}; name one of them", listed(&found)),
    }
}

/// The first few names of a list.
fn listed(ids: &[&str]) -> String {
    const SHOWN: usize = 5;
    let short = |id: &&str| names(id).get(1).cloned().unwrap_or_else(|| (*id).to_owned());
    let mut out = ids.iter().take(SHOWN).map(short).collect::<Vec<_>>().join(", ");
    if let Some(more) = ids.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        out.push_str(&format!(" and {more} more"));
    }
    out
}

/// What a proxy may be called: its id, `name.namespace`, `namespace/name`, its name.
fn names(id: &str) -> Vec<String> {
    let mut names = vec![id.to_owned()];
    if let Some(workload) = id.split('~').nth(2) {
        names.push(workload.to_owned());
        if let Some((name, namespace)) = workload.rsplit_once('.') {
            names.extend([format!("{namespace}/{name}"), name.to_owned()]);
        }
    }
    names
}
