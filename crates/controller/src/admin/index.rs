//! The page that a person begins with: every page in a sentence, and the connected proxies.
//!
//! In: published values. Out: one HTML document without scripts and without anything from elsewhere.
//!
//! **Invariant:** what a proxy calls itself is text here, never markup.

use std::fmt::Write;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use super::{Admin, dump};

/// Proxies that are listed; of more, the page says where.
const LISTED: usize = 500;

/// Every page: its path, whether it is about a proxy, and what it shows.
pub(super) const PAGES: [(&str, bool, &str); 10] = [
    ("/debug/syncz", false, "Connected proxies: per type what was sent, accepted and rejected."),
    ("/debug/configz", false, "Every object, whether it is accepted, and what is wrong with it."),
    (
        "/debug/registryz",
        false,
        "Every service: its host, addresses, resolution, ports and who sees it.",
    ),
    ("/debug/endpointz", false, "Every service port and its endpoints, ready or not."),
    ("/debug/scopez", true, "What a proxy may reach, and which objects decide that."),
    (
        "/debug/config_dump",
        true,
        "What a proxy is offered, in the shape of Envoy's own dump, with where each part comes from.",
    ),
    (
        "/debug/pushz",
        false,
        "The last batches: what came in, what ran again, what differed and who was woken.",
    ),
    (
        "/debug/sourcez",
        false,
        "The watches of the cluster: how much was read, or since when one is stale.",
    ),
    ("/debug/ca", false, "The certificate authority: who it is, what it issued and refused."),
    ("/debug/logging", false, "The log level; POST /debug/logging?level=debug changes it."),
];

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:1rem/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;width:100%}\
caption{text-align:left;font-weight:bold;font-size:1.25rem;padding:1rem 0 .5rem}\
th,td{text-align:left;padding:.3rem 1rem .3rem 0;border-bottom:1px solid;vertical-align:top}\
code{overflow-wrap:anywhere}";

/// The page.
pub(super) fn html(admin: &Admin) -> String {
    let world = admin.shared.world.load();
    let ready = *admin.shared.ready.borrow();
    let with_errors = world
        .objects
        .keys()
        .filter(|o| world.problems_of(o).iter().any(|p| p.severity == model::Severity::Error))
        .count();
    let streams = dump::syncz(admin);
    let streams = streams.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>heddle-controller</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>heddle-controller {}</h1>\n<p>{}. {} objects, {with_errors} of them with errors. \
         {} proxies are connected. Revision {}.</p>\n",
        env!("CARGO_PKG_VERSION"),
        if ready { "Ready" } else { "Not ready: its sources are not synced yet" },
        world.objects.size(),
        streams.len(),
        world.revision,
    );
    // Writing to a text does not fail.
    let _ = write_pages(&mut out).and_then(|()| write_proxies(&mut out, streams));
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn write_pages(out: &mut String) -> std::fmt::Result {
    writeln!(out, "<table>\n<caption>Pages</caption>")?;
    writeln!(
        out,
        "<thead><tr><th scope=\"col\">Page</th><th scope=\"col\">Shows</th></tr></thead>"
    )?;
    writeln!(out, "<tbody>")?;
    for (path, of_proxy, shows) in PAGES {
        let page = match of_proxy {
            true => format!("<code>{path}?proxyID=ID</code>"),
            false => format!("<a href=\"{path}\"><code>{path}</code></a>"),
        };
        writeln!(out, "<tr><td>{page}</td><td>{}</td></tr>", escape(shows))?;
    }
    writeln!(out, "</tbody>\n</table>")
}

fn write_proxies(out: &mut String, streams: &[Value]) -> std::fmt::Result {
    writeln!(out, "<table>\n<caption>Connected proxies</caption>")?;
    writeln!(out, "<thead><tr>")?;
    for column in ["Proxy", "Protocol", "State", "Connected since", "Pages"] {
        writeln!(out, "<th scope=\"col\">{column}</th>")?;
    }
    writeln!(out, "</tr></thead>\n<tbody>")?;
    for stream in streams.iter().take(LISTED) {
        let text = |key: &str| stream[key].as_str().unwrap_or_default();
        let id = utf8_percent_encode(text("proxy"), NON_ALPHANUMERIC);
        writeln!(
            out,
            "<tr><td><code>{}</code></td><td>{}</td><td>{}</td><td>{}</td><td>\
             <a href=\"/debug/config_dump?proxyID={id}\">configuration</a>, \
             <a href=\"/debug/scopez?proxyID={id}\">scope</a></td></tr>",
            escape(text("proxy")),
            escape(text("protocol")),
            state(stream),
            escape(text("connectedSince")),
        )?;
    }
    let more = streams.len().saturating_sub(LISTED);
    if streams.is_empty() {
        writeln!(out, "<tr><td colspan=\"5\">None is connected.</td></tr>")?;
    } else if more > 0 {
        writeln!(
            out,
            "<tr><td colspan=\"5\">And {more} more: <a href=\"/debug/syncz\">all of them</a>.</td></tr>"
        )?;
    }
    writeln!(out, "</tbody>\n</table>")
}

/// In sync, or the types that are not.
fn state(stream: &Value) -> String {
    if stream["synced"] == true {
        return "in sync".to_owned();
    }
    let types = stream["types"].as_object().into_iter().flatten();
    let late = types.filter(|(_, t)| t["state"] != "SYNCED");
    let late: Vec<String> =
        late.map(|(name, t)| format!("{name} {}", t["state"].as_str().unwrap_or("?"))).collect();
    if late.is_empty() { "asked for nothing yet".to_owned() } else { escape(&late.join(", ")) }
}

/// Text as HTML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_looks_like_markup_stays_text() {
        let stream = serde_json::json!({ "proxy": "<script>'&\"", "synced": true });
        let mut out = String::new();
        write_proxies(&mut out, &[stream]).expect("written");
        assert!(out.contains("&lt;script&gt;&#39;&amp;&quot;"), "{out}");
        assert!(out.contains("proxyID=%3Cscript%3E%27%26%22\""), "{out}");
        assert!(!out.contains("<script"), "{out}");
    }

    #[test]
    fn of_many_proxies_the_first_are_listed_and_the_rest_counted() {
        let streams = vec![serde_json::json!({ "proxy": "a" }); LISTED + 7];
        let mut out = String::new();
        write_proxies(&mut out, &streams).expect("written");
        assert_eq!(out.matches("<code>a</code>").count(), LISTED);
        assert!(out.contains("And 7 more"), "{out}");
    }
}
