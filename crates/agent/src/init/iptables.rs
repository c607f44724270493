//! The rules for iptables, where nft is not there: one text for each family.
//!
//! In: rules. Out: texts for `iptables-restore` and `ip6tables-restore`, each of which applies all
//! of its family or nothing; and the two rules by which our chains are entered.
//!
//! **Invariant:** touches our own two chains, and one rule each in PREROUTING and OUTPUT.

use super::rules::{HAND_OVER, INBOUND, OUTBOUND, OWN, Rules, Which};

/// Our chains, and from where they are entered.
pub(super) const CHAINS: [(&str, &str); 2] =
    [("PREROUTING", "HEDDLE_INBOUND"), ("OUTPUT", "HEDDLE_OUTBOUND")];

/// Replaces our chains of a family.
pub(super) fn restore(rules: &Rules, ipv6: bool) -> String {
    let mut text = "*nat\n".to_owned();
    for (_, chain) in CHAINS {
        // Makes the chain, or empties it.
        text.push_str(&format!(":{chain} - [0:0]\n"));
    }
    for (lines, (_, chain)) in [inbound(rules), outbound(rules, ipv6)].iter().zip(CHAINS) {
        for line in lines {
            text.push_str(&format!("-A {chain} -p tcp {line}\n"));
        }
    }
    text.push_str("COMMIT\n");
    text
}

fn inbound(rules: &Rules) -> Vec<String> {
    let mut lines = interfaces("-i", rules);
    lines.push(format!("--dport {}:{} -j RETURN", OWN.start(), OWN.end()));
    lines.extend(ports(&rules.excluded_inbound_ports, "RETURN"));
    let capture = format!("REDIRECT --to-ports {INBOUND}");
    match &rules.inbound_ports {
        Which::All => lines.push(format!("-j {capture}")),
        Which::These(these) => lines.extend(ports(these, &capture)),
    }
    lines
}

fn outbound(rules: &Rules, ipv6: bool) -> Vec<String> {
    let Rules { user, group, .. } = rules;
    let (hand_over, loopback) = match ipv6 {
        false => (format!("{}/32", HAND_OVER.0), "127.0.0.0/8"),
        true => (format!("{}/128", HAND_OVER.1), "::1/128"),
    };
    let capture = format!("REDIRECT --to-ports {OUTBOUND}");
    let mut lines = interfaces("-o", rules);
    lines.extend(ports(&rules.excluded_outbound_ports, "RETURN"));
    lines.push(format!("-o lo -s {hand_over} -j RETURN"));
    let proxies = [format!("-m owner --uid-owner {user}"), format!("-m owner --gid-owner {group}")];
    for proxy in &proxies {
        lines.push(format!("-o lo ! -d {loopback} {proxy} -j REDIRECT --to-ports {INBOUND}"));
    }
    lines.push("-o lo -j RETURN".to_owned());
    lines.extend(proxies.map(|proxy| format!("{proxy} -j RETURN")));
    lines.push(format!("-d {loopback} -j RETURN"));
    let to = |ranges: &[ipnet::IpNet], verdict: &str| -> Vec<String> {
        let blocks = Rules::of_family(ranges, ipv6);
        blocks.iter().map(|block| format!("-d {block} -j {verdict}")).collect()
    };
    lines.extend(to(&rules.excluded_outbound_ranges, "RETURN"));
    lines.extend(ports(&rules.outbound_ports, &capture));
    match &rules.outbound_ranges {
        Which::All => lines.push(format!("-j {capture}")),
        Which::These(these) => lines.extend(to(these, &capture)),
    }
    lines
}

fn interfaces(flag: &str, rules: &Rules) -> Vec<String> {
    // A name that stands for several ends otherwise here.
    let names = rules.excluded_interfaces.iter().map(|name| name.replace('*', "+"));
    names.map(|name| format!("{flag} {name} -j RETURN")).collect()
}

fn ports(ports: &[u16], verdict: &str) -> Vec<String> {
    ports.iter().map(|port| format!("--dport {port} -j {verdict}")).collect()
}
