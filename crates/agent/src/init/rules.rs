//! What is captured: the meaning of the flags, before any tool's syntax.
//!
//! In: values of flags. Out: [`Rules`], which `nft` and `iptables` spell, and a connection that
//! they must capture.
//!
//! What leaves a connection alone goes before what captures it; of both directions this is the
//! order:
//!
//! | outbound | then |
//! |---|---|
//! | by an excluded interface, to an excluded port | leave |
//! | over loopback, from the proxy's hand-over address | leave: it goes to the workload |
//! | over loopback, from the proxy, to an address of the pod | as inbound: the workload calls itself by its service |
//! | over loopback; from the proxy; to loopback | leave |
//! | to an excluded range | leave |
//! | to an included port, to an included range | capture |
//!
//! | inbound | then |
//! |---|---|
//! | by an excluded interface, to a port of the mesh, to an excluded port | leave |
//! | to an included port | capture |
//!
//! **Invariant:** pure; names no tool.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;

/// Where captured connections of the workload go.
pub(crate) const OUTBOUND: u16 = 15001;
/// Where captured connections to the workload go.
pub(crate) const INBOUND: u16 = 15006;
/// Ports of the proxy and the agent themselves: never captured.
pub(crate) const OWN: RangeInclusive<u16> = 15000..=15090;
/// What the proxy hands over to the workload comes from here.
pub(crate) const HAND_OVER: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(127, 0, 0, 6), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6));

/// What is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) inbound_ports: Which<u16>,
    pub(crate) excluded_inbound_ports: Vec<u16>,
    pub(crate) outbound_ranges: Which<IpNet>,
    pub(crate) excluded_outbound_ranges: Vec<IpNet>,
    pub(crate) outbound_ports: Vec<u16>,
    pub(crate) excluded_outbound_ports: Vec<u16>,
    pub(crate) excluded_interfaces: Vec<String>,
    /// Whose connections are the proxy's.
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// All, or these; written `*`, or a list with commas, which may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Which<T> {
    All,
    These(Vec<T>),
}

/// A list with commas; an empty text is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

/// A port that is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Port(pub(crate) u16);

/// A block of addresses; one address is a block of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range(pub(crate) IpNet);

/// Name of an interface, which may end with `+` or `*`: all that begin so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface(pub(crate) String);

// === impl Rules ===

impl Rules {
    /// Blocks of one family, of these.
    pub(crate) fn of_family(ranges: &[IpNet], ipv6: bool) -> Vec<IpNet> {
        let mut blocks: Vec<IpNet> =
            ranges.iter().filter(|r| matches!(r, IpNet::V6(_)) == ipv6).copied().collect();
        // Those that meet are one: nft refuses a set with both.
        blocks = IpNet::aggregate(&blocks);
        blocks.sort();
        blocks
    }

    /// Whether anything of this family leaves to the proxy.
    fn outbound_everywhere(&self) -> bool {
        self.outbound_ranges == Which::All
    }

    /// An address and a port of this family to which a connection must be captured; none if there
    /// is none that can be named.
    pub(crate) fn captured(&self, ipv6: bool) -> Option<SocketAddr> {
        // Of blocks that are kept for documents: nobody has these addresses.
        let nobody: [IpAddr; 4] = match ipv6 {
            false => [[192, 0, 2, 1], [198, 51, 100, 1], [203, 0, 113, 1], [203, 0, 113, 2]]
                .map(|bytes| Ipv4Addr::from(bytes).into()),
            true => [1, 2, 3, 4].map(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).into()),
        };
        let within =
            |ranges: &[IpNet], address: &IpAddr| ranges.iter().any(|r| r.contains(address));
        let named: Vec<IpAddr> = match &self.outbound_ranges {
            Which::All => Vec::new(),
            Which::These(ranges) => {
                let ranges = ranges.iter().filter(|r| matches!(r, IpNet::V6(_)) == ipv6);
                ranges.filter_map(|range| range.hosts().next()).collect()
            }
        };
        let ports =
            |of: &[u16]| of.iter().copied().find(|p| !self.excluded_outbound_ports.contains(p));
        let good = |address: &IpAddr| {
            !within(&self.excluded_outbound_ranges, address) && !address.is_loopback()
        };
        let everywhere = self.outbound_everywhere();
        let to_range = |address: &IpAddr| match &self.outbound_ranges {
            Which::All => true,
            Which::These(ranges) => within(ranges, address),
        };
        let any = ports(&[9, 7, 13, 17, 19, 80, 443]).and_then(|port| {
            let mut all = nobody.iter().chain(&named).filter(|a| everywhere || to_range(a));
            all.find(|a| good(a)).map(|address| SocketAddr::new(*address, port))
        });
        any.or_else(|| {
            let port = ports(&self.outbound_ports)?;
            nobody.iter().find(|a| good(a)).map(|address| SocketAddr::new(*address, port))
        })
    }
}

// === impl values ===

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(port) if port > 0 => Ok(Self(port)),
            _ => Err(format!("{text:?} is no port from 1 to 65535")),
        }
    }
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let range = text.parse::<IpNet>().map(|net| net.trunc());
        let range = range.or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        range
            .map(Self)
            .map_err(|_| format!("{text:?} is no block of addresses, such as 10.0.0.0/8"))
    }
}

impl FromStr for Interface {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix(['+', '*']).unwrap_or(text);
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@');
        if name.is_empty() || text.len() > 15 || !name.bytes().all(allowed) {
            return Err(format!("{text:?} is no name of an interface"));
        }
        Ok(Self(if name == text { name.to_owned() } else { format!("{name}*") }))
    }
}

impl<T: FromStr<Err = String>> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl<T: FromStr<Err = String>> FromStr for Which<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "*" => Ok(Self::All),
            list => list.parse().map(|List(these)| Self::These(these)),
        }
    }
}

impl<T> Which<T> {
    /// Each as something else.
    pub(crate) fn map<U>(self, f: impl FnMut(T) -> U) -> Which<U> {
        match self {
            Self::All => Which::All,
            Self::These(these) => Which::These(these.into_iter().map(f).collect()),
        }
    }
}

/// Values with commas.
pub(super) fn joined<T: fmt::Display>(values: &[T], separator: &str) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}
