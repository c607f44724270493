//! A simulator: walks the configuration of a proxy as Envoy does.
//!
//! In: the resources of a proxy as Envoy's JSON, and a call: an address, and what is said there.
//! Out: where the call ends, and by which listener, chain and route.
//!
//! It reads Envoy's own words and shares no code with what writes them; `tests/traffic.rs` holds it
//! against a real Envoy.
//!
//! **Invariant:** knows only what Envoy's documentation says of matching, nothing of rules.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use envoy_api::ResourceType;
use regex::Regex;
use serde_json::Value;

use crate::golden::Outcome;

/// A connection, and what is said on it.
#[derive(Clone, Debug)]
pub struct Call {
    /// Address that the client uses.
    pub to: SocketAddr,
    /// Address of the client.
    pub from: IpAddr,
    /// Whether the call is for the workload beside the proxy.
    pub inbound: bool,
    /// What is said.
    pub says: Says,
}

/// What a client says first.
#[derive(Clone, Debug)]
pub enum Says {
    /// An HTTP/1.1 request.
    Http(Request),
    /// TLS for this server name.
    Tls(Option<String>),
    /// Bytes that are neither.
    Bytes,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: String,
    /// `Host`.
    pub host: String,
    /// Path, with the query if there is one.
    pub path: String,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// Where a call ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// At one of these clusters.
    Clusters(Vec<String>),
    /// With this status from the proxy itself.
    Status(u64),
    /// The connection is closed without an answer.
    Closed,
}

/// Where a call ends, and why.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Where.
    pub end: End,
    /// Listener, chain and route that decided.
    pub by: String,
}

/// The configuration of a proxy.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Listeners by name.
    pub listeners: BTreeMap<String, Value>,
    /// Virtual hosts by RouteConfiguration.
    pub hosts: BTreeMap<String, Vec<Value>>,
    /// Clusters by name.
    pub clusters: BTreeMap<String, Value>,
}

/// What the listener filters find out of a connection.
struct Seen<'a> {
    tls: bool,
    server_name: Option<&'a str>,
    http: bool,
}

// === impl Config ===

impl Config {
    /// What the proxy of a golden case has.
    pub fn of(outcome: &Outcome) -> Self {
        let mut config = Self::default();
        for shown in &outcome.resources {
            let (name, body) = (shown.encoded.name().to_string(), shown.body());
            match shown.encoded.resource_type() {
                ResourceType::Listener => drop(config.listeners.insert(name, body)),
                ResourceType::Cluster => drop(config.clusters.insert(name, body)),
                ResourceType::RouteConfiguration => {
                    let inline = array(&body["virtual_hosts"]).to_vec();
                    config.hosts.entry(name).or_default().extend(inline);
                }
                ResourceType::VirtualHost => {
                    let parent = name.split('/').next().unwrap_or_default().to_owned();
                    config.hosts.entry(parent).or_default().push(body);
                }
                _ => {}
            }
        }
        config
    }

    /// Whether connections to and from a workload are captured.
    pub fn captures(&self) -> bool {
        self.listeners.contains_key("virtualOutbound")
    }

    /// Where a call ends.
    pub fn reach(&self, call: &Call) -> Reached {
        let Some((name, listener)) = self.listener(call) else {
            return Reached { end: End::Closed, by: "no listener".to_owned() };
        };
        let filters = array(&listener["listener_filters"]);
        let has = |filter: &str| {
            filters.iter().any(|f| text(&f["name"]).ends_with(filter) && !is_disabled(f, call))
        };
        let (tls, server_name) = match &call.says {
            Says::Tls(name) if has("tls_inspector") => (true, name.as_deref()),
            _ => (false, None),
        };
        let http = matches!(call.says, Says::Http(_)) && has("http_inspector");
        let seen = Seen { tls, server_name, http };
        let chains = array(&listener["filter_chains"]);
        let found = chain(chains, call, &seen);
        let (chain, which) = match found {
            Some(index) => (&chains[index], format!("{name} chain {index}")),
            None => (&listener["default_filter_chain"], format!("{name} default chain")),
        };
        // The last one decides; those before it say something of the connection.
        let filter = array(&chain["filters"]).last().map(|filter| &filter["typed_config"]);
        let filter = filter.unwrap_or(&Value::Null);
        let kind = text(&filter["@type"]).rsplit('.').next().unwrap_or_default().to_owned();
        match (&*kind, &call.says) {
            ("TcpProxy", _) => Reached { end: self.tcp(filter), by: which },
            ("HttpConnectionManager", Says::Http(request)) => self.http(filter, request, which),
            // What is no HTTP gets an answer all the same.
            ("HttpConnectionManager", _) => Reached { end: End::Status(400), by: which },
            _ => Reached { end: End::Closed, by: format!("{which}: no filter") },
        }
    }

    /// The listener that a connection comes to.
    fn listener(&self, call: &Call) -> Option<(&str, &Value)> {
        let at = |name: String| self.listeners.get_key_value(&name);
        let port = call.to.port();
        let found = if call.inbound {
            at("virtualInbound".to_owned())
        } else {
            // What the proxy opens itself is there without capture too.
            at(format!("{}_{port}", call.to.ip()))
                .or_else(|| at(format!("0.0.0.0_{port}")))
                .or_else(|| at("virtualOutbound".to_owned()))
        };
        found.map(|(name, listener)| (&**name, listener))
    }

    /// Whether a cluster has nobody who could answer.
    pub fn is_empty(&self, cluster: &str) -> bool {
        let found = self.clusters.get(cluster);
        found.is_none_or(|c| c["type"] == "STATIC" && c["load_assignment"].is_null())
    }

    fn tcp(&self, proxy: &Value) -> End {
        let clusters = shares(&proxy["cluster"], &proxy["weighted_clusters"]);
        if clusters.iter().all(|cluster| self.is_empty(cluster)) {
            return End::Closed;
        }
        End::Clusters(clusters)
    }

    fn http(&self, manager: &Value, request: &Request, by: String) -> Reached {
        let rds = text(&manager["rds"]["route_config_name"]);
        let inline = array(&manager["route_config"]["virtual_hosts"]);
        let hosts = self.hosts.get(rds).map_or(inline, |hosts| &hosts[..]);
        let Some(host) = host(hosts, &request.host) else {
            return Reached { end: End::Status(404), by: format!("{by}, no host") };
        };
        let by = format!("{by}, host {}", text(&host["name"]));
        let mut routes = array(&host["routes"]).iter().enumerate();
        let Some((index, route)) = routes.find(|(_, route)| matches(&route["match"], request))
        else {
            return Reached { end: End::Status(404), by: format!("{by}, no route") };
        };
        let by = format!("{by}, route {index} {}", text(&route["name"]));
        let end = if let Some(answer) = route.get("direct_response") {
            End::Status(answer["status"].as_u64().unwrap_or_default())
        } else if let Some(redirect) = route.get("redirect") {
            End::Status(match text(&redirect["response_code"]) {
                "FOUND" => 302,
                "SEE_OTHER" => 303,
                "TEMPORARY_REDIRECT" => 307,
                "PERMANENT_REDIRECT" => 308,
                _ => 301,
            })
        } else {
            let action = &route["route"];
            let clusters = shares(&action["cluster"], &action["weighted_clusters"]);
            match clusters.iter().all(|cluster| self.is_empty(cluster)) {
                true => End::Status(503),
                false => End::Clusters(clusters),
            }
        };
        Reached { end, by }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Names of clusters that get something.
fn shares(one: &Value, several: &Value) -> Vec<String> {
    if let Some(name) = one.as_str() {
        return vec![name.to_owned()];
    }
    let some = array(&several["clusters"]).iter().filter(|c| c["weight"].as_u64() != Some(0));
    some.map(|c| text(&c["name"]).to_owned()).collect()
}

/// Whether a listener filter says that it is not for a connection. We write one form of this: not
/// to any of some ports.
fn is_disabled(filter: &Value, call: &Call) -> bool {
    let disabled = &filter["filter_disabled"];
    if disabled.is_null() {
        return false;
    }
    let any = &disabled["not_match"];
    let one = std::slice::from_ref(any);
    let rules = any["or_match"]["rules"].as_array().map_or(one, |rules| &rules[..]);
    let port = u64::from(call.to.port());
    !rules.iter().any(|rule| {
        let range = &rule["destination_port_range"];
        (range["start"].as_u64().unwrap_or(0)..range["end"].as_u64().unwrap_or(0)).contains(&port)
    })
}

/// The chain that takes a connection: step by step the most specific that are left.
fn chain(chains: &[Value], call: &Call, seen: &Seen<'_>) -> Option<usize> {
    let mut left: Vec<usize> = (0..chains.len()).collect();
    let of = |index: usize| &chains[index]["filter_chain_match"];
    let port = u64::from(call.to.port());
    keep(&mut left, |i| match of(i)["destination_port"].as_u64() {
        Some(wanted) => (wanted == port).then_some(1),
        None => Some(0),
    });
    keep(&mut left, |i| longest(&of(i)["prefix_ranges"], call.to.ip()));
    keep(&mut left, |i| {
        let names = array(&of(i)["server_names"]);
        match seen.server_name {
            _ if names.is_empty() => Some(0),
            None => None,
            Some(asked) => {
                let asked = asked.to_lowercase();
                let rank = |name: &Value| match text(name).strip_prefix('*') {
                    Some(suffix) => asked.ends_with(suffix).then_some(suffix.len()),
                    None => (text(name) == asked).then_some(usize::MAX),
                };
                names.iter().filter_map(rank).max()
            }
        }
    });
    let transport = if seen.tls { "tls" } else { "raw_buffer" };
    keep(&mut left, |i| match text(&of(i)["transport_protocol"]) {
        "" => Some(0),
        wanted => (wanted == transport).then_some(1),
    });
    keep(&mut left, |i| {
        let wanted = array(&of(i)["application_protocols"]);
        match wanted.is_empty() {
            true => Some(0),
            false => (seen.http && wanted.iter().any(|p| p == "http/1.1")).then_some(1),
        }
    });
    keep(&mut left, |i| longest(&of(i)["source_prefix_ranges"], call.from));
    left.first().copied()
}

/// Keep those of the highest rank; none leaves.
fn keep(left: &mut Vec<usize>, rank: impl Fn(usize) -> Option<usize>) {
    let best = left.iter().filter_map(|i| rank(*i)).max();
    left.retain(|i| best.is_some() && rank(*i) == best);
}

/// Bits of the longest block that an address lies in, one more than there are; no block = 0.
fn longest(blocks: &Value, address: IpAddr) -> Option<usize> {
    let blocks = array(blocks);
    if blocks.is_empty() {
        return Some(0);
    }
    let bits = |block: &Value| {
        let prefix: IpAddr = text(&block["address_prefix"]).parse().ok()?;
        let length = u32::try_from(block["prefix_len"].as_u64().unwrap_or(0)).ok()?;
        let inside = match (prefix, address) {
            (IpAddr::V4(p), IpAddr::V4(a)) => {
                let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
                u32::from(p) & mask == u32::from(a) & mask
            }
            (IpAddr::V6(p), IpAddr::V6(a)) => {
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                u128::from(p) & mask == u128::from(a) & mask
            }
            _ => false,
        };
        inside.then_some(length as usize + 1)
    };
    blocks.iter().filter_map(bits).max()
}

/// The virtual host of a `Host`: exact, then the longest suffix, then `*`; ports do not count.
fn host<'a>(hosts: &'a [Value], asked: &str) -> Option<&'a Value> {
    let lower = asked.to_lowercase();
    let asked = match lower.rsplit_once(':') {
        Some((name, port)) if port.chars().all(|c| c.is_ascii_digit()) => name,
        _ => &lower,
    };
    let rank = |domain: &Value| match text(domain) {
        "*" => Some(0),
        domain => match domain.strip_prefix('*') {
            Some(suffix) => {
                (asked.len() > suffix.len() && asked.ends_with(suffix)).then_some(suffix.len())
            }
            None => (domain == asked).then_some(usize::MAX),
        },
    };
    let best = |host: &Value| array(&host["domains"]).iter().filter_map(rank).max();
    hosts.iter().filter_map(|h| Some((best(h)?, h))).max_by_key(|(rank, _)| *rank).map(|(_, h)| h)
}

fn matches(condition: &Value, request: &Request) -> bool {
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let ignore_case = condition["case_sensitive"] == false;
    let fold = |t: &str| if ignore_case { t.to_lowercase() } else { t.to_owned() };
    let path_fits = if let Some(prefix) = condition["prefix"].as_str() {
        fold(path).starts_with(&fold(prefix))
    } else if let Some(exact) = condition["path"].as_str() {
        fold(path) == fold(exact)
    } else {
        is_all(text(&condition["safe_regex"]["regex"]), path)
    };
    let header = |wanted: &Value| {
        let value = match text(&wanted["name"]) {
            ":method" => Some(request.method.clone()),
            ":authority" => Some(request.host.clone()),
            ":scheme" => Some("http".to_owned()),
            name => request.headers.get(name).cloned(),
        };
        let empty = wanted["treat_missing_header_as_empty"] == true;
        let value = value.or(empty.then(String::new));
        let invert = wanted["invert_match"] == true;
        match value {
            // A header that is not there is no value, inverted or not.
            None => wanted["present_match"] == true && invert,
            Some(_) if wanted["present_match"] == true => !invert,
            Some(value) => fits(&wanted["string_match"], &value) != invert,
        }
    };
    let parameter = |wanted: &Value| {
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let found = pairs.into_iter().find(|(name, _)| *name == text(&wanted["name"]));
        match found {
            None => false,
            Some(_) if wanted["present_match"] == true => true,
            Some((_, value)) => fits(&wanted["string_match"], value),
        }
    };
    path_fits
        && array(&condition["headers"]).iter().all(header)
        && array(&condition["query_parameters"]).iter().all(parameter)
}

fn fits(matcher: &Value, value: &str) -> bool {
    if let Some(exact) = matcher["exact"].as_str() {
        exact == value
    } else if let Some(prefix) = matcher["prefix"].as_str() {
        value.starts_with(prefix)
    } else {
        is_all(text(&matcher["safe_regex"]["regex"]), value)
    }
}

/// Whether all of a text is what an expression says.
fn is_all(pattern: &str, value: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(value))
}
