//! The rules as one script of nft, for both families at once.
//!
//! In: rules. Out: the text for `nft --file -`, which applies all of it or nothing.
//!
//! **Invariant:** touches one table, which is ours alone; applied twice it is as applied once.

use super::rules::{HAND_OVER, INBOUND, OUTBOUND, OWN, Rules, Which, joined};

/// The table.
pub(super) const TABLE: &str = "inet heddle";

/// Takes the table away, whether it is there or not.
pub(super) fn clean() -> String {
    // What is not there cannot be deleted; adding what is there does nothing.
    format!("add table {TABLE}\ndelete table {TABLE}\n")
}

/// Replaces the table.
pub(super) fn script(rules: &Rules) -> String {
    let chain = |name: &str, hook: &str, lines: Vec<String>| {
        let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
        format!(
            "  chain {name} {{\n    type nat hook {hook} priority -100; policy accept;\n{lines}  }}\n"
        )
    };
    format!(
        "{}table {TABLE} {{\n{}{}}}\n",
        clean(),
        chain("inbound", "prerouting", inbound(rules)),
        chain("outbound", "output", outbound(rules)),
    )
}

fn inbound(rules: &Rules) -> Vec<String> {
    let mut lines = vec!["meta l4proto != tcp return".to_owned()];
    lines.extend(interfaces("iifname", rules));
    lines.push(format!("tcp dport {}-{} return", OWN.start(), OWN.end()));
    lines.extend(ports(&rules.excluded_inbound_ports, "return"));
    let capture = redirect(INBOUND);
    match &rules.inbound_ports {
        Which::All => lines.push(capture),
        Which::These(these) => lines.extend(ports(these, &capture)),
    }
    lines
}

fn outbound(rules: &Rules) -> Vec<String> {
    let Rules { user, group, .. } = rules;
    let (four, six) = HAND_OVER;
    let (inbound, capture) = (redirect(INBOUND), redirect(OUTBOUND));
    let mut lines = vec!["meta l4proto != tcp return".to_owned()];
    lines.extend(interfaces("oifname", rules));
    lines.extend(ports(&rules.excluded_outbound_ports, "return"));
    lines.push(format!("oifname \"lo\" ip saddr {four} return"));
    lines.push(format!("oifname \"lo\" ip6 saddr {six} return"));
    for proxy in [format!("meta skuid {user}"), format!("meta skgid {group}")] {
        lines.push(format!("oifname \"lo\" {proxy} ip daddr != 127.0.0.0/8 {inbound}"));
        lines.push(format!("oifname \"lo\" {proxy} ip6 daddr != ::1 {inbound}"));
    }
    lines.push("oifname \"lo\" return".to_owned());
    lines.push(format!("meta skuid {user} return"));
    lines.push(format!("meta skgid {group} return"));
    lines.push("ip daddr 127.0.0.0/8 return".to_owned());
    lines.push("ip6 daddr ::1 return".to_owned());
    lines.extend(ranges(&rules.excluded_outbound_ranges, "return"));
    lines.extend(ports(&rules.outbound_ports, &capture));
    match &rules.outbound_ranges {
        Which::All => lines.push(capture),
        Which::These(these) => lines.extend(ranges(these, &capture)),
    }
    lines
}

/// A redirection names the protocol that its port is of.
fn redirect(port: u16) -> String {
    format!("meta l4proto tcp redirect to :{port}")
}

fn interfaces(which: &str, rules: &Rules) -> Vec<String> {
    let names = rules.excluded_interfaces.iter();
    names.map(|name| format!("{which} \"{name}\" return")).collect()
}

fn ports(ports: &[u16], verdict: &str) -> Vec<String> {
    match ports {
        [] => vec![],
        ports => vec![format!("tcp dport {{ {} }} {verdict}", joined(ports, ", "))],
    }
}

fn ranges(all: &[ipnet::IpNet], verdict: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for (family, ipv6) in [("ip", false), ("ip6", true)] {
        match &Rules::of_family(all, ipv6)[..] {
            [] => {}
            // A block of everything is no set.
            [all] if all.prefix_len() == 0 => {
                lines
                    .push(format!("meta nfproto {} {verdict}", if ipv6 { "ipv6" } else { "ipv4" }));
            }
            blocks => {
                lines.push(format!("{family} daddr {{ {} }} {verdict}", joined(blocks, ", ")));
            }
        }
    }
    lines
}
