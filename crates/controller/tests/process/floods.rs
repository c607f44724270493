//! Floods of HTTP/2 frames against both xDS ports, from clients that nobody admitted: the
//! connection ends or is held back, memory stays, and a proxy hears of changes all the while.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::identity::Secured;
use super::xds::{ID, Proxy, node};
use super::{Controller, Folder, MESH, until};

/// How long a flood lasts when nobody ends it.
const LASTS: Duration = Duration::from_secs(1);
/// A change must have reached the proxy by then, on a busy machine too.
const SOON: Duration = Duration::from_secs(5);
/// What all floods together may add to the controller's memory, in KiB.
const MEMORY: u64 = 128 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;

const END_HEADERS: u8 = 4;

/// As much as a window may grow at once; it overflows.
const MOST: [u8; 4] = 0x7fff_ffff_u32.to_be_bytes();

/// Reasons of GOAWAY.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const ENHANCE_YOUR_CALM: u32 = 11;

trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// How a flood ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By GOAWAY with this reason.
    GoAway(u32),
    /// By a reset, which may have overtaken the GOAWAY.
    Closed,
    /// Nothing more is taken until the answers are read: they filled what the kernel keeps.
    HeldBack,
    /// Never: everything was taken and cost nothing that stays.
    Taken,
}

/// Frames to send again and again.
struct Flood {
    name: &'static str,
    /// Whether answers are read.
    reads: bool,
    /// The n-th batch.
    batch: fn(u32) -> Vec<u8>,
    ends: &'static [End],
}

const FLOODS: &[Flood] = &[
    Flood {
        name: "streams that are reset at once",
        reads: false,
        batch: |n| streams(n, |id| [open(id), frame(RESET, 0, id, &8_u32.to_be_bytes())].concat()),
        ends: &[End::GoAway(ENHANCE_YOUR_CALM)],
    },
    Flood {
        name: "streams that make the server reset them",
        reads: false,
        batch: |n| streams(n, |id| [open(id), frame(WINDOW, 0, id, &MOST)].concat()),
        ends: &[End::GoAway(ENHANCE_YOUR_CALM)],
    },
    Flood {
        name: "streams that stay open",
        reads: true,
        batch: |n| streams(n, open),
        ends: &[End::GoAway(ENHANCE_YOUR_CALM)],
    },
    Flood {
        name: "settings, their answers unread",
        reads: false,
        batch: |_| frame(SETTINGS, 0, 0, &[]).repeat(64),
        ends: &[End::HeldBack, End::Taken],
    },
    Flood {
        name: "settings",
        reads: true,
        batch: |n| {
            frame(SETTINGS, 0, 0, &[&[0, 4][..], &(n & 0xffff).to_be_bytes()].concat()).repeat(64)
        },
        ends: &[End::Taken],
    },
    Flood {
        name: "pings, their answers unread",
        reads: false,
        batch: |_| frame(PING, 0, 0, &[7; 8]).repeat(64),
        ends: &[End::HeldBack, End::Taken],
    },
    Flood {
        name: "pings",
        reads: true,
        batch: |_| frame(PING, 0, 0, &[7; 8]).repeat(64),
        ends: &[End::Taken],
    },
    Flood {
        name: "headers that never end",
        reads: false,
        batch: |n| match n {
            0 => frame(HEADERS, 0, 1, &request()),
            _ => frame(CONTINUATION, 0, 1, &header(b"a", &[b'x'; 100])).repeat(64),
        },
        ends: &[End::GoAway(ENHANCE_YOUR_CALM)],
    },
    Flood {
        name: "empty pieces of headers",
        reads: false,
        batch: |n| match n {
            0 => frame(HEADERS, 0, 1, &[]),
            _ => frame(CONTINUATION, 0, 1, &[]).repeat(64),
        },
        ends: &[End::GoAway(ENHANCE_YOUR_CALM)],
    },
    Flood {
        name: "headers that unpack to much",
        reads: true,
        batch: |n| {
            // One entry of 4,000 bytes for the table, and 4,000 times that entry.
            let entry = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'x'; 4000]].concat();
            let bomb = [request(), entry, vec![0xbe; 4000]].concat();
            frame(HEADERS, END_HEADERS, 2 * n + 1, &bomb)
        },
        ends: &[End::GoAway(ENHANCE_YOUR_CALM), End::GoAway(PROTOCOL_ERROR), End::Taken],
    },
    Flood {
        name: "empty data",
        reads: false,
        batch: |n| match n {
            0 => open(1),
            _ => frame(DATA, 0, 1, &[]).repeat(64),
        },
        ends: &[End::GoAway(ENHANCE_YOUR_CALM)],
    },
    Flood {
        name: "data beyond the window",
        reads: false,
        batch: |n| match n {
            0 => open(1),
            _ => frame(DATA, 0, 1, &[0xff; 16 << 10]).repeat(64),
        },
        ends: &[End::GoAway(FLOW_CONTROL_ERROR), End::GoAway(ENHANCE_YOUR_CALM)],
    },
    Flood {
        name: "a window that overflows",
        reads: false,
        batch: |_| frame(WINDOW, 0, 0, &MOST).repeat(64),
        ends: &[End::GoAway(FLOW_CONTROL_ERROR)],
    },
    Flood {
        name: "priorities",
        reads: false,
        batch: |n| streams(n, |id| frame(PRIORITY, 0, id, &[0, 0, 0, 0, 1])),
        ends: &[End::Taken],
    },
    Flood {
        name: "frames that nobody knows",
        reads: false,
        batch: |_| frame(0xbb, 0xff, 0, &[b'x'; 1000]).repeat(64),
        ends: &[End::Taken],
    },
    Flood {
        name: "a frame that is too long",
        reads: false,
        batch: |_| frame(DATA, 0, 1, &[b'x'; 20_000]),
        ends: &[End::GoAway(6)],
    },
];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a length").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header that is not indexed.
fn header(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = |text: &[u8]| u8::try_from(text.len()).expect("a short one");
    [&[0, length(name)], name, &[length(value)], value].concat()
}

/// The headers of a call; nothing of it is admitted.
fn request() -> Vec<u8> {
    let method = b"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
    // `:method: POST` and `:scheme: http` are entries of the static table.
    let fixed = vec![0x83, 0x86];
    let path = header(b":path", method);
    [fixed, path, header(b":authority", b"a"), header(b"content-type", b"application/grpc")]
        .concat()
}

fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request())
}

/// Frames of 64 new streams.
fn streams(n: u32, of: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    (0..64).flat_map(|i| of((n * 64 + i) * 2 + 1)).collect()
}

/// The bytes that came, as far as they were looked at.
#[derive(Default)]
struct Answers {
    unread: Vec<u8>,
    goaway: Option<u32>,
}

impl Answers {
    /// Read what there is; the error if that is the end.
    fn read(&mut self, wire: &mut dyn Wire) -> Result<(), End> {
        let mut bytes = [0; 64 << 10];
        match wire.read(&mut bytes) {
            Ok(0) => return Err(self.end()),
            Ok(count) => self.unread.extend_from_slice(&bytes[..count]),
            Err(error) if is_silence(&error) => return Ok(()),
            Err(_) => return Err(self.end()),
        }
        while let [a, b, c, kind, _, _, _, _, _, rest @ ..] = &self.unread[..] {
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            let Some(payload) = rest.get(..length) else { break };
            if let (&GOAWAY, [_, _, _, _, a, b, c, d, ..]) = (kind, payload) {
                self.goaway.get_or_insert(u32::from_be_bytes([*a, *b, *c, *d]));
            }
            self.unread.drain(..9 + length);
        }
        Ok(())
    }

    fn end(&self) -> End {
        self.goaway.map_or(End::Closed, End::GoAway)
    }

    /// Read until the end, or until nothing more comes.
    fn rest(&mut self, wire: &mut dyn Wire, otherwise: End) -> End {
        let limit = Instant::now() + LASTS;
        while Instant::now() < limit {
            if let Err(end) = self.read(wire) {
                return end;
            }
        }
        self.goaway.map_or(otherwise, End::GoAway)
    }
}

fn is_silence(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

/// Send it until it ends; how, and after how many bytes.
fn run(flood: &Flood, wire: &mut dyn Wire) -> (End, usize) {
    let hello = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &[])].concat();
    wire.write_all(&hello).expect("a connection");
    let mut answers = Answers::default();
    let began = Instant::now();
    let mut sent = 0;
    for n in 0.. {
        let batch = (flood.batch)(n);
        match wire.write_all(&batch).and_then(|()| wire.flush()) {
            Ok(()) => sent += batch.len(),
            Err(error) if is_silence(&error) => return (answers.rest(wire, End::HeldBack), sent),
            Err(_) => return (answers.rest(wire, End::Closed), sent),
        }
        if flood.reads
            && let Err(end) = answers.read(wire)
        {
            return (end, sent);
        }
        if began.elapsed() > LASTS {
            break;
        }
    }
    (answers.rest(wire, End::Taken), sent)
}

fn connect(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Box<dyn Wire> {
    let tcp = TcpStream::connect(address).expect("a connection");
    // A write that waits that long is held back; a read has nothing to wait for.
    tcp.set_write_timeout(Some(LASTS / 2)).expect("a timeout");
    tcp.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
    let Some(tls) = tls else { return Box::new(tcp) };
    let name = address.ip().into();
    let mut session = ClientConnection::new(Arc::clone(tls), name).expect("set up");
    tcp.set_read_timeout(Some(LASTS)).expect("a timeout");
    let mut stream = tcp;
    while session.is_handshaking() {
        session.complete_io(&mut stream).expect("a handshake");
    }
    stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
    Box::new(StreamOwned::new(session, stream))
}

/// A figure of the process, in KiB.
fn memory(controller: &Controller, what: &str) -> u64 {
    let path = format!("/proc/{}/status", controller.guard.id());
    let status = std::fs::read_to_string(path).expect("a process");
    let line = status.lines().find(|line| line.starts_with(what)).expect("a figure");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// Run all floods against a port, while a proxy is told of changes.
async fn withstands(
    controller: &Controller,
    file: &Path,
    address: SocketAddr,
    tls: Option<ClientConfig>,
) {
    let tls = tls.map(Arc::new);
    let mut proxy = Proxy::connect(controller, node(ID, 40)).await;
    let first = proxy.next().await;
    proxy.answer(&first, None).await;
    let before = memory(controller, "VmRSS");
    let (mut slowest, mut changes, mut wrong) = (Duration::ZERO, 0, Vec::new());
    for flood in FLOODS {
        let mut wire = connect(address, tls.as_ref());
        let mut flooding = tokio::task::spawn_blocking(move || run(flood, &mut *wire));
        let (end, sent) = loop {
            changes += 1;
            let balancer = ["RANDOM", "ROUND_ROBIN"][changes % 2];
            let began = Instant::now();
            std::fs::write(file, MESH.replace("RANDOM", balancer)).expect("written");
            let changed = tokio::time::timeout(SOON, proxy.next()).await;
            let changed = changed.unwrap_or_else(|_| panic!("nothing comes during {}", flood.name));
            slowest = slowest.max(began.elapsed());
            proxy.answer(&changed, None).await;
            if flooding.is_finished() {
                break (&mut flooding).await.expect("no panic");
            }
        };
        eprintln!("{}: {end:?} after {sent} bytes", flood.name);
        let ended = |expected: &End| matches!(expected, End::GoAway(_)) && end == End::Closed;
        if !flood.ends.iter().any(|expected| *expected == end || ended(expected)) {
            wrong.push((flood.name, end));
        }
    }
    assert_eq!(wrong, [], "how they ended");
    let grown = memory(controller, "VmHWM").saturating_sub(before);
    eprintln!("{changes} changes, the slowest after {slowest:?}; at most {grown} KiB more");
    assert!(grown < MEMORY, "{grown} KiB more");
    until("the proxy's stream alone", || {
        let page = controller.debug("/debug/syncz").1;
        let streams: serde_json::Value = serde_json::from_str(&page).expect("JSON");
        (streams.as_array().map(Vec::len) == Some(1)).then_some(())
    });
    assert_eq!(controller.public("/readyz").0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn given_floods_of_frames_on_the_plain_port_then_a_proxy_hears_of_changes_all_the_while() {
    let folder = Folder::with("mesh.yaml", MESH);
    let controller = Controller::on(folder.path());
    let file = folder.path().join("mesh.yaml");
    withstands(&controller, &file, controller.xds, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn given_floods_of_frames_on_the_secure_port_then_a_proxy_hears_of_changes_all_the_while() {
    let mesh = Secured::start();
    let address = mesh.controller.secure.expect("a secure port");
    let file = mesh.folder.path().join("mesh/mesh.yaml");
    withstands(&mesh.controller, &file, address, Some(mesh.tls(None))).await;
}
