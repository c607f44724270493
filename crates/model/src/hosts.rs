//! Hosts and wildcards: which pattern holds which host.
//!
//! **Invariant:** a pattern is a full host, `*.suffix` or `*`; compared without regard to case
//! because it was lower-cased when read.

use std::cmp::Ordering;
use std::sync::Arc;

/// Whether `pattern` covers everything that `host` (itself maybe a pattern) covers.
pub fn covers(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            // `*.a.com` covers `x.a.com` and `*.b.a.com`, not `a.com`.
            let host = host.strip_prefix('*').unwrap_or(host);
            host.len() >= suffix.len()
                && host.ends_with(suffix)
                && (suffix.is_empty() || host.len() > suffix.len() || pattern == host_pattern(host))
        }
        None => pattern == host,
    }
}

fn host_pattern(suffix: &str) -> String {
    format!("*{suffix}")
}

/// The narrower of two hosts of which one covers the other; none when they are apart.
pub fn intersect(a: &Arc<str>, b: &Arc<str>) -> Option<Arc<str>> {
    if covers(a, b) {
        Some(Arc::clone(b))
    } else if covers(b, a) {
        Some(Arc::clone(a))
    } else {
        None
    }
}

/// Patterns that may cover `host`, most specific first: itself, `*.b.c`, `*.c`, `*`.
pub fn patterns_for(host: &str) -> Vec<Arc<str>> {
    let mut out = vec![Arc::from(host)];
    let mut rest = host.strip_prefix("*.").unwrap_or(host);
    while let Some((_, suffix)) = rest.split_once('.') {
        out.push(Arc::from(host_pattern(&format!(".{suffix}"))));
        rest = suffix;
    }
    if host != "*" {
        out.push(Arc::from("*"));
    }
    out
}

/// Most specific first: exact hosts, then longer suffixes, then `*`; ties by text.
pub fn by_specificity(a: &str, b: &str) -> Ordering {
    let key = |h: &str| (h.starts_with('*'), std::cmp::Reverse(h.len()));
    key(a).cmp(&key(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_what_lies_below_it() {
        for (pattern, host, expected) in [
            ("*", "a.com", true),
            ("*", "*", true),
            ("*.a.com", "x.a.com", true),
            ("*.a.com", "*.b.a.com", true),
            ("*.a.com", "*.a.com", true),
            ("*.a.com", "a.com", false),
            ("*.a.com", "xa.com", false),
            ("*.a.com", "*", false),
            ("a.com", "a.com", true),
            ("a.com", "*.a.com", false),
        ] {
            assert_eq!(covers(pattern, host), expected, "{pattern} covers {host}");
        }
    }

    #[test]
    fn patterns_go_from_exact_to_any() {
        let all: Vec<_> = patterns_for("a.b.c").iter().map(ToString::to_string).collect();
        assert_eq!(all, ["a.b.c", "*.b.c", "*.c", "*"]);
        assert_eq!(patterns_for("*").len(), 1);
    }
}
