//! Tests of redirection: what the flags come to, word by word.

use clap::Parser as _;

use super::*;

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

fn rules(flags: &[&str]) -> Rules {
    Command::try_parse_from([&["init"], flags].concat()).expect("flags").args.rules()
}

fn refused(flag: &str) -> String {
    match Command::try_parse_from(["init", flag]) {
        Ok(_) => panic!("{flag} is taken"),
        Err(error) => error.to_string(),
    }
}

/// A script of nft: what comes in, and what goes out before and after the proxy's own, which are
/// this user and this group.
fn script(inbound: &str, before: &str, [user, group]: [u32; 2], after: &str) -> String {
    format!(
        r#"add table inet heddle
delete table inet heddle
table inet heddle {{
  chain inbound {{
    type nat hook prerouting priority -100; policy accept;
    meta l4proto != tcp return
{inbound}  }}
  chain outbound {{
    type nat hook output priority -100; policy accept;
    meta l4proto != tcp return
{before}    oifname "lo" ip saddr 127.0.0.6 return
    oifname "lo" ip6 saddr ::6 return
    oifname "lo" meta skuid {user} ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15006
    oifname "lo" meta skuid {user} ip6 daddr != ::1 meta l4proto tcp redirect to :15006
    oifname "lo" meta skgid {group} ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :15006
    oifname "lo" meta skgid {group} ip6 daddr != ::1 meta l4proto tcp redirect to :15006
    oifname "lo" return
    meta skuid {user} return
    meta skgid {group} return
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
{after}  }}
}}
"#
    )
}

#[test]
fn without_flags_everything_is_captured_once() {
    let inbound = "    tcp dport 15000-15090 return
    meta l4proto tcp redirect to :15006
";
    let after = "    meta l4proto tcp redirect to :15001\n";
    assert_eq!(nft::script(&rules(&[])), script(inbound, "", [1337, 1337], after));
}

const ALL: [&str; 9] = [
    "--include-inbound-ports=8080,9090",
    "--exclude-inbound-ports=22",
    "--include-outbound-ip-ranges=10.0.0.0/8,fd00::/8",
    "--exclude-outbound-ip-ranges=10.1.0.0/16,10.0.3.4,10.1.2.0/24",
    "--include-outbound-ports=443",
    "--exclude-outbound-ports=3306, 5432",
    "--exclude-interfaces=eth1,tap+",
    "--proxy-uid=7",
    "--proxy-gid=8",
];

#[test]
fn with_every_flag_what_is_left_alone_goes_first() {
    let inbound = r#"    iifname "eth1" return
    iifname "tap*" return
    tcp dport 15000-15090 return
    tcp dport { 22 } return
    tcp dport { 8080, 9090 } meta l4proto tcp redirect to :15006
"#;
    let before = r#"    oifname "eth1" return
    oifname "tap*" return
    tcp dport { 3306, 5432 } return
"#;
    let after = "    ip daddr { 10.0.3.4/32, 10.1.0.0/16 } return
    tcp dport { 443 } meta l4proto tcp redirect to :15001
    ip daddr { 10.0.0.0/8 } meta l4proto tcp redirect to :15001
    ip6 daddr { fd00::/8 } meta l4proto tcp redirect to :15001
";
    assert_eq!(nft::script(&rules(&ALL)), script(inbound, before, [7, 8], after));
    assert_eq!(
        iptables::restore(&rules(&ALL), false),
        "*nat
:HEDDLE_INBOUND - [0:0]
:HEDDLE_OUTBOUND - [0:0]
-A HEDDLE_INBOUND -p tcp -i eth1 -j RETURN
-A HEDDLE_INBOUND -p tcp -i tap+ -j RETURN
-A HEDDLE_INBOUND -p tcp --dport 15000:15090 -j RETURN
-A HEDDLE_INBOUND -p tcp --dport 22 -j RETURN
-A HEDDLE_INBOUND -p tcp --dport 8080 -j REDIRECT --to-ports 15006
-A HEDDLE_INBOUND -p tcp --dport 9090 -j REDIRECT --to-ports 15006
-A HEDDLE_OUTBOUND -p tcp -o eth1 -j RETURN
-A HEDDLE_OUTBOUND -p tcp -o tap+ -j RETURN
-A HEDDLE_OUTBOUND -p tcp --dport 3306 -j RETURN
-A HEDDLE_OUTBOUND -p tcp --dport 5432 -j RETURN
-A HEDDLE_OUTBOUND -p tcp -o lo -s 127.0.0.6/32 -j RETURN
-A HEDDLE_OUTBOUND -p tcp -o lo ! -d 127.0.0.0/8 -m owner --uid-owner 7 -j REDIRECT --to-ports 15006
-A HEDDLE_OUTBOUND -p tcp -o lo ! -d 127.0.0.0/8 -m owner --gid-owner 8 -j REDIRECT --to-ports 15006
-A HEDDLE_OUTBOUND -p tcp -o lo -j RETURN
-A HEDDLE_OUTBOUND -p tcp -m owner --uid-owner 7 -j RETURN
-A HEDDLE_OUTBOUND -p tcp -m owner --gid-owner 8 -j RETURN
-A HEDDLE_OUTBOUND -p tcp -d 127.0.0.0/8 -j RETURN
-A HEDDLE_OUTBOUND -p tcp -d 10.0.3.4/32 -j RETURN
-A HEDDLE_OUTBOUND -p tcp -d 10.1.0.0/16 -j RETURN
-A HEDDLE_OUTBOUND -p tcp --dport 443 -j REDIRECT --to-ports 15001
-A HEDDLE_OUTBOUND -p tcp -d 10.0.0.0/8 -j REDIRECT --to-ports 15001
COMMIT
"
    );
    let six = iptables::restore(&rules(&ALL), true);
    assert!(
        six.contains("-s ::6/128 -j RETURN\n") && six.contains("-d fd00::/8 -j REDIRECT"),
        "{six}"
    );
    assert!(!six.contains("10."), "{six}");
}

#[test]
fn nothing_and_everything_can_be_said() {
    let none = nft::script(&rules(&["--include-inbound-ports=", "--include-outbound-ip-ranges="]));
    assert!(!none.contains("redirect to :15001"), "{none}");
    assert_eq!(none.matches("redirect to :15006").count(), 4, "{none}");
    let all = nft::script(&rules(&["--include-outbound-ip-ranges=0.0.0.0/0,::/0"]));
    for family in ["ipv4", "ipv6"] {
        let line = format!("meta nfproto {family} meta l4proto tcp redirect to :15001");
        assert!(all.contains(&line), "{all}");
    }
}

#[test]
fn a_bad_value_is_refused_by_its_flag() {
    for (flag, says) in [
        ("--include-inbound-ports=http", "\"http\" is no port"),
        ("--exclude-inbound-ports=0", "\"0\" is no port"),
        ("--exclude-outbound-ports=65536", "\"65536\" is no port"),
        ("--include-outbound-ip-ranges=10.0.0.0/33", "no block of addresses"),
        ("--exclude-outbound-ip-ranges=*", "no block of addresses"),
        ("--exclude-interfaces=eth0\" drop", "no name of an interface"),
        ("--exclude-interfaces=a23456789012345678", "no name of an interface"),
        ("--proxy-uid=-1", "--proxy-uid"),
    ] {
        let error = refused(flag);
        let name = flag.split('=').next().unwrap_or_default();
        assert!(error.contains(says) && error.contains(name), "{error}");
    }
}

#[test]
fn what_is_checked_is_what_must_be_captured() {
    let checked = |flags: &[&str]| rules(flags).captured(false).map(|to| to.to_string());
    assert_eq!(checked(&[]).as_deref(), Some("192.0.2.1:9"));
    assert_eq!(
        rules(&[]).captured(true).map(|to| to.to_string()).as_deref(),
        Some("[2001:db8::1]:9")
    );
    let excluded = ["--exclude-outbound-ip-ranges=192.0.2.0/24", "--exclude-outbound-ports=9,7"];
    assert_eq!(checked(&excluded).as_deref(), Some("198.51.100.1:13"));
    assert_eq!(
        checked(&["--include-outbound-ip-ranges=10.96.0.0/12"]).as_deref(),
        Some("10.96.0.1:9")
    );
    let ports = ["--include-outbound-ip-ranges=", "--include-outbound-ports=443"];
    assert_eq!(checked(&ports).as_deref(), Some("192.0.2.1:443"));
    assert_eq!(checked(&["--include-outbound-ip-ranges="]), None);
}
