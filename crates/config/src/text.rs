//! Texts with a form of their own: hosts, names, headers.
//!
//! **Invariant:** each check says what is wrong in words that follow a field path.

use std::net::IpAddr;
use std::sync::Arc;

use model::rows::{IpNet, Protocol};

/// A DNS name in lower or upper case, without wildcard or port.
pub(crate) fn dns_name(text: &str) -> Result<(), String> {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(());
    }
    if text.contains(':') {
        return Err(format!("{text:?} must be a host without a port"));
    }
    Err(format!("{text:?} is not a DNS name"))
}

/// A host: a DNS name, `*.suffix` or `*`.
pub(crate) fn host(text: &str) -> Result<(), String> {
    match text.strip_prefix("*.") {
        _ if text == "*" => Ok(()),
        Some(rest) => dns_name(rest),
        None if text.parse::<std::net::IpAddr>().is_ok() => Ok(()),
        None => dns_name(text),
    }
}

/// A host of a gateway server: a host, alone or as `namespace/host` (`.` = own, `*` = any).
pub(crate) fn scoped_host(text: &str) -> Result<(), String> {
    match text.split_once('/') {
        None => host(text),
        Some(("." | "*", rest)) => host(rest),
        Some((namespace, rest)) => dns_name(namespace).and_then(|()| host(rest)),
    }
}

/// `name` or `namespace/name`.
pub(crate) fn reference(text: &str) -> Result<(), String> {
    match text.split_once('/') {
        None => dns_name(text),
        Some((namespace, name)) => dns_name(namespace).and_then(|()| dns_name(name)),
    }
}

/// An IP address.
pub(crate) fn address(text: &str) -> Result<(), String> {
    match text.parse::<IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!("must be an IP address, but is {text:?}")),
    }
}

/// An IP address, or a block such as `10.1.0.0/16`.
pub(crate) fn block(text: &str) -> Result<(), String> {
    match parse_block(text) {
        Some(_) => Ok(()),
        None => Err(format!("{text:?} is neither an IP address nor a block such as 10.1.0.0/16")),
    }
}

/// The block that a text of `block` means.
pub(crate) fn parse_block(text: &str) -> Option<IpNet> {
    let one = || text.parse::<IpAddr>().ok().map(IpNet::from);
    text.parse::<IpNet>().ok().map(|net| net.trunc()).or_else(one)
}

/// The protocol that a word stands for, in whatever case.
pub(crate) fn protocol(word: &str) -> Option<Protocol> {
    Some(match word.to_ascii_lowercase().as_str() {
        "http" | "http_proxy" => Protocol::Http,
        "http2" | "grpc" | "grpc-web" => Protocol::Http2,
        "https" | "tls" => Protocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" | "hbone" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    })
}

/// A text that has something in it.
pub(crate) fn not_empty(text: &str) -> Result<(), String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(()) }
}

/// A text that may stand in a header.
pub(crate) fn no_control(text: &str) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        return Err("must not hold control characters".to_owned());
    }
    Ok(())
}

/// A header name, pseudo-headers included.
pub(crate) fn header_name(text: &str) -> Result<(), String> {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let name = text.strip_prefix(':').unwrap_or(text);
    if !name.is_empty() && name.chars().all(token) {
        return Ok(());
    }
    Err(format!("{text:?} is not a header name"))
}

/// The full host of a name that may be short: `reviews` in namespace `default` is
/// `reviews.default.svc.cluster.local`.
pub(crate) fn full_host(name: &str, namespace: &str) -> Arc<str> {
    let lower = name.to_ascii_lowercase();
    if lower.contains('.') || lower.contains('*') || lower.contains(':') {
        return Arc::from(lower);
    }
    Arc::from(format!("{lower}.{namespace}.svc.{DOMAIN}"))
}

/// Domain of the cluster's services.
pub(crate) const DOMAIN: &str = "cluster.local";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_wildcards_and_addresses() {
        for good in ["a", "a.b.c", "*.a.com", "*", "10.0.0.1", "A.com", "my_svc"] {
            assert_eq!(host(good), Ok(()), "{good}");
        }
        for bad in ["", "a..b", "a.com:80", "*a.com", "a b", "-a", "*.*", "http://a"] {
            assert!(host(bad).is_err(), "{bad}");
        }
    }
}
