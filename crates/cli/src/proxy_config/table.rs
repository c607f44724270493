//! Tables of a dump, for people.
//!
//! In: a dump in Envoy's shape, with origins beside each entry. Out: text.
//!
//! **Invariant:** reads what Envoy reads, whoever wrote it: what is not known is shown as `-`, never
//! left out.

use comfy_table::{Table, presets};
use serde_json::Value;

use super::Kind;
use super::select::FIELDS;

/// Where a filter chain leads.
pub(super) struct Chain<'a> {
    /// Conditions; empty = everything.
    matched: String,
    /// RouteConfiguration, if it is HTTP.
    pub(super) route_config: Option<&'a str>,
    /// Clusters and their weights, if it is not.
    pub(super) clusters: Vec<(&'a str, Option<u64>)>,
}

/// The parts of a cluster's name, such as `outbound|80|v1|reviews.default.svc.cluster.local`.
pub(super) struct Destination<'a> {
    pub(super) direction: &'a str,
    pub(super) port: &'a str,
    pub(super) subset: &'a str,
    /// The whole name, where it has no parts.
    pub(super) host: &'a str,
}

/// Every kind that was asked for, as tables.
pub(super) fn text(dump: &Value, kind: Kind) -> String {
    let mut out = String::new();
    for (of, field) in FIELDS.iter().filter(|(of, _)| kind == Kind::All || kind == *of) {
        let entries = || list(&dump["configs"]).iter().flat_map(|config| list(&config[*field]));
        let (header, rows): (&[&str], Vec<Vec<String>>) = match of {
            Kind::Listeners => (
                &["ADDRESS", "PORT", "MATCH", "DESTINATION", "FROM"],
                entries().flat_map(listener).collect(),
            ),
            Kind::Routes => (
                &["NAME", "DOMAINS", "MATCH", "DESTINATION", "FROM"],
                entries().flat_map(routes).collect(),
            ),
            Kind::Clusters => (
                &["HOST", "PORT", "SUBSET", "DIRECTION", "TYPE", "FROM"],
                entries().map(cluster).collect(),
            ),
            _ => {
                let discovered = entries().map(|entry| (&entry["endpoint_config"], entry));
                let all = discovered.chain(assigned(dump)).flat_map(|(set, e)| endpoints(set, e));
                (&["ENDPOINT", "STATUS", "LOCALITY", "CLUSTER", "FROM"], all.collect())
            }
        };
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.iter().copied());
        table.add_rows(rows);
        if !out.is_empty() {
            out.push('\n');
        }
        let lines = table.to_string();
        lines.lines().for_each(|line| {
            out.push_str(line.trim_end());
            out.push('\n');
        });
    }
    out
}

/// The elements of a list; none of what is no list.
pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// A text; empty of what is no text.
pub(super) fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Origins, one a line.
fn from(origins: &Value) -> String {
    or_dash(list(origins).iter().map(text_of).collect::<Vec<_>>().join("\n"))
}

fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

fn joined(list_of: &Value, separator: &str) -> String {
    list(list_of).iter().map(text_of).collect::<Vec<_>>().join(separator)
}

fn listener(entry: &Value) -> Vec<Vec<String>> {
    let listener = &entry["active_state"]["listener"];
    let socket = &listener["address"]["socket_address"];
    let row = |chain: &Chain<'_>| {
        let to = match chain.route_config {
            Some(name) => format!("Route: {name}"),
            None if chain.clusters.is_empty() => "-".to_owned(),
            None => format!("Cluster: {}", weighted(&chain.clusters)),
        };
        vec![
            or_dash(text_of(&socket["address"])),
            socket["port_value"].to_string(),
            if chain.matched.is_empty() { "ALL".to_owned() } else { chain.matched.clone() },
            to,
            from(&entry["origins"]),
        ]
    };
    destinations(listener).iter().map(row).collect()
}

/// Where connections to a listener go.
pub(super) fn destinations(listener: &Value) -> Vec<Chain<'_>> {
    let default = listener.get("default_filter_chain").into_iter();
    list(&listener["filter_chains"]).iter().chain(default).map(chain).collect()
}

fn chain(chain: &Value) -> Chain<'_> {
    let matched = &chain["filter_chain_match"];
    let mut conditions = Vec::new();
    let mut add = |name: &str, value: String| {
        if !value.is_empty() {
            conditions.push(format!("{name}: {value}"));
        }
    };
    add("Trans", text_of(&matched["transport_protocol"]).to_owned());
    add("App", joined(&matched["application_protocols"], ","));
    add("SNI", joined(&matched["server_names"], ","));
    let range =
        |range: &Value| format!("{}/{}", text_of(&range["address_prefix"]), range["prefix_len"]);
    let ranges = list(&matched["prefix_ranges"]).iter().map(range).collect::<Vec<_>>().join(",");
    let port = matched["destination_port"].as_u64().map(|p| format!(":{p}")).unwrap_or_default();
    add("Addr", ranges + &port);
    let configs = list(&chain["filters"]).iter().map(|filter| &filter["typed_config"]);
    let is = |config: &Value, name: &str| text_of(&config["@type"]).ends_with(name);
    let mut out =
        Chain { matched: conditions.join("; "), route_config: None, clusters: Vec::new() };
    for config in configs {
        if is(config, ".HttpConnectionManager") {
            let inline = &config["route_config"]["name"];
            out.route_config =
                config["rds"]["route_config_name"].as_str().or(inline.as_str()).or(Some("inline"));
        } else if is(config, ".TcpProxy") {
            out.clusters = clusters_of(config);
        }
    }
    out
}

/// Clusters and weights that a route or a TCP proxy names.
pub(super) fn clusters_of(route: &Value) -> Vec<(&str, Option<u64>)> {
    let one = route["cluster"].as_str().map(|name| (name, None));
    let several = list(&route["weighted_clusters"]["clusters"]).iter();
    let several = several.map(|c| (text_of(&c["name"]), c["weight"].as_u64()));
    one.into_iter().chain(several).collect()
}

fn weighted(clusters: &[(&str, Option<u64>)]) -> String {
    let total: u64 = clusters.iter().filter_map(|(_, weight)| *weight).sum();
    let one = |(name, weight): &(&str, Option<u64>)| match weight {
        Some(weight) if total > 0 => {
            #[allow(clippy::cast_precision_loss)]
            let share = *weight as f64 * 100.0 / total as f64;
            // At most one digit, and none where it says nothing.
            format!("{name} ({}%)", (share * 10.0).round() / 10.0)
        }
        _ => (*name).to_owned(),
    };
    clusters.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn routes(entry: &Value) -> Vec<Vec<String>> {
    let config = &entry["route_config"];
    let name = text_of(&config["name"]);
    let mut rows = Vec::new();
    for host in list(&config["virtual_hosts"]) {
        let full = text_of(&host["name"]);
        let key = full.strip_prefix(name).and_then(|k| k.strip_prefix('/')).unwrap_or(full);
        let domains = domains(&host["domains"]);
        let mut add = |matched: String, to: String, origins: &Value| {
            rows.push(vec![name.to_owned(), domains.clone(), matched, to, from(origins)]);
        };
        let of_host = &entry["virtual_host_origins"][key];
        let of_routes = list(&entry["route_origins"][key]);
        for (index, route) in list(&host["routes"]).iter().enumerate() {
            let origins = of_routes.get(index).filter(|o| !list(o).is_empty()).unwrap_or(of_host);
            add(condition(&route["match"]), action(route), origins);
        }
        if list(&host["routes"]).is_empty() {
            add("/*".to_owned(), "404".to_owned(), of_host);
        }
    }
    rows
}

/// The first domain, and how many more there are.
fn domains(domains: &Value) -> String {
    let first = list(domains).first().map(text_of).unwrap_or("-");
    match list(domains).len() {
        0 | 1 => first.to_owned(),
        n => format!("{first} + {} more", n - 1),
    }
}

fn condition(matched: &Value) -> String {
    let path = |key: &str| matched[key].as_str();
    let mut out = vec![match (path("path"), path("prefix"), path("path_separated_prefix")) {
        (Some(exact), ..) => exact.to_owned(),
        (_, Some("/"), _) => "/*".to_owned(),
        (_, Some(prefix), _) => format!("{prefix}*"),
        (_, _, Some(prefix)) => format!("{prefix}/*"),
        _ => match text_of(&matched["safe_regex"]["regex"]) {
            "" => "*".to_owned(),
            regex => format!("regex {regex}"),
        },
    }];
    for (kind, key) in [("header", "headers"), ("query", "query_parameters")] {
        out.extend(list(&matched[key]).iter().map(|m| format!("{kind} {}", comparison(m))));
    }
    out.join("\n")
}

/// A condition on a header or a query parameter, such as `end-user = jason`.
fn comparison(matcher: &Value) -> String {
    const WORDS: [(&str, &str); 4] = [
        ("exact", "="),
        ("prefix", "starts with"),
        ("suffix", "ends with"),
        ("contains", "contains"),
    ];
    let name = text_of(&matcher["name"]);
    let inverted = matcher["invert_match"] == true;
    if let Some(present) = matcher["present_match"].as_bool() {
        return format!("{name} is {}there", if present == inverted { "not " } else { "" });
    }
    let texts = &matcher["string_match"];
    let compared = WORDS
        .iter()
        .find_map(|(key, word)| Some(format!("{word} {}", texts[*key].as_str()?)))
        .or_else(|| Some(format!("matches {}", texts["safe_regex"]["regex"].as_str()?)));
    let not = if inverted { "not " } else { "" };
    format!("{not}{name} {}", compared.unwrap_or_else(|| "?".to_owned()))
}

fn action(route: &Value) -> String {
    let forward = clusters_of(&route["route"]);
    if !forward.is_empty() {
        return weighted(&forward);
    }
    if let Some(status) = route["direct_response"]["status"].as_u64() {
        return format!("answers {status}");
    }
    match route.get("redirect") {
        Some(redirect) => {
            let part = |key: &str| text_of(&redirect[key]).to_owned();
            let port = redirect["port_redirect"].as_u64().map(|p| format!(":{p}"));
            let to = [
                part("scheme_redirect"),
                part("host_redirect"),
                port.unwrap_or_default(),
                part("path_redirect"),
                part("prefix_rewrite"),
            ];
            let to: Vec<String> = to.into_iter().filter(|part| !part.is_empty()).collect();
            format!("redirects to {}", to.join(" "))
        }
        None => "-".to_owned(),
    }
}

fn cluster(entry: &Value) -> Vec<String> {
    let cluster = &entry["cluster"];
    let to = Destination::of(text_of(&cluster["name"]));
    vec![
        or_dash(to.host),
        or_dash(to.port),
        or_dash(to.subset),
        or_dash(to.direction),
        // Envoy's default is not spelled out.
        cluster["type"].as_str().unwrap_or("STATIC").to_owned(),
        from(&entry["origins"]),
    ]
}

/// Endpoint sets that stand in their cluster, each with the entry of the cluster.
fn assigned(dump: &Value) -> impl Iterator<Item = (&Value, &Value)> {
    let configs = list(&dump["configs"]).iter();
    let entries = configs.flat_map(|config| list(&config["dynamic_active_clusters"]));
    entries.filter_map(|entry| Some((entry["cluster"].get("load_assignment")?, entry)))
}

/// The endpoints of a set; `entry` says where it comes from.
fn endpoints(set: &Value, entry: &Value) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for group in list(&set["endpoints"]) {
        let place = ["region", "zone", "sub_zone"].map(|part| text_of(&group["locality"][part]));
        let place = place.join("/").trim_end_matches('/').to_owned();
        for endpoint in list(&group["lb_endpoints"]) {
            rows.push(vec![
                address(&endpoint["endpoint"]["address"]),
                endpoint["health_status"].as_str().unwrap_or("UNKNOWN").to_owned(),
                or_dash(place.clone()),
                text_of(&set["cluster_name"]).to_owned(),
                from(&entry["origins"]),
            ]);
        }
    }
    rows
}

fn address(address: &Value) -> String {
    let socket = &address["socket_address"];
    match (socket["address"].as_str(), socket["port_value"].as_u64()) {
        (Some(ip), Some(port)) if ip.contains(':') => format!("[{ip}]:{port}"),
        (Some(ip), Some(port)) => format!("{ip}:{port}"),
        _ => or_dash(text_of(&address["pipe"]["path"])),
    }
}

// === impl Destination ===

impl<'a> Destination<'a> {
    /// Take a cluster's name apart.
    pub(super) fn of(name: &'a str) -> Self {
        let parts: Vec<&str> = name.splitn(4, '|').collect();
        match parts[..] {
            [direction, port, subset, host] => Self { direction, port, subset, host },
            _ => Self { direction: "", port: "", subset: "", host: name },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Lines with single spaces.
    fn rows(dump: &Value, kind: Kind) -> Vec<String> {
        let tidy = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        text(dump, kind).lines().skip(1).map(tidy).collect()
    }

    #[test]
    fn endpoints_that_stand_in_a_cluster_are_listed_with_those_discovered() {
        let set = |host: &str| {
            let socket = json!({ "address": host, "port_value": 443 });
            let endpoint = json!({ "endpoint": { "address": { "socket_address": socket } } });
            json!({ "cluster_name": "c", "endpoints": [{ "lb_endpoints": [endpoint] }] })
        };
        let strict = json!({ "name": "c", "load_assignment": set("api.example.com") });
        let dump = json!({ "configs": [
            { "dynamic_active_clusters": [
                { "cluster": strict, "origins": ["a"] },
                { "cluster": { "name": "d" } },
            ] },
            { "dynamic_endpoint_configs": [{ "endpoint_config": set("::1"), "origins": ["b"] }] },
        ] });
        assert_eq!(
            rows(&dump, Kind::Endpoints),
            ["[::1]:443 UNKNOWN - c b", "api.example.com:443 UNKNOWN - c a"]
        );
        let all = super::super::select::Filter::default();
        let kept = super::super::select::select(dump, Kind::Endpoints, &all);
        assert_eq!(kept["configs"][0]["dynamic_active_clusters"].as_array().map(Vec::len), Some(1));
        assert_eq!(rows(&kept, Kind::Endpoints).len(), 2);
    }

    #[test]
    fn what_comes_in_has_its_port_and_its_condition() {
        let proxy = json!({ "@type": "x/y.TcpProxy", "cluster": "inbound|8080||" });
        let chain = json!({
            "filter_chain_match": {
                "destination_port": 8080,
                "prefix_ranges": [{ "address_prefix": "10.0.0.1", "prefix_len": 32 }],
                "server_names": ["a", "b"],
            },
            "filters": [{ "typed_config": proxy }],
        });
        let socket = json!({ "address": "0.0.0.0", "port_value": 15006 });
        let listener = json!({ "address": { "socket_address": socket }, "filter_chains": [chain] });
        let dump = json!({ "configs": [
            { "dynamic_listeners": [{ "active_state": { "listener": listener } }] },
            { "dynamic_active_clusters": [{ "cluster": { "name": "inbound|8080||" } }] },
        ] });
        assert_eq!(
            rows(&dump, Kind::Listeners),
            ["0.0.0.0 15006 SNI: a,b; Addr: 10.0.0.1/32:8080 Cluster: inbound|8080|| -"]
        );
        assert_eq!(rows(&dump, Kind::Clusters), ["- 8080 - inbound STATIC -"]);
    }
}
