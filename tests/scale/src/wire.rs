//! What goes over one connection: HTTP/2 with a single stream, gRPC messages on it, discovery
//! messages in these.
//!
//! In: bytes as they were read, in pieces of any size; messages to send. Out: bytes to write; the
//! parts of each discovery response as soon as they are complete.
//!
//! By hand, because a load of thousands of connections must cost a fraction of what it measures:
//! nothing is copied unless it was cut by the end of a read, and headers are not decoded.
//!
//! **Invariant:** does no I/O, and keeps no more of a response than one of its resources.

use anyhow::{Result, bail, ensure};
use envoy_api::resource::put_field;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const STREAM: u32 = 1;
/// The largest window: nobody waits for a WINDOW_UPDATE.
const WINDOW: u32 = 0x7fff_ffff;
/// Bytes after which the server is given more of it.
const REFILL: u64 = 1 << 29;
const FRAME: usize = 16 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

/// A part of a discovery response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// `version_info` of a state of the world.
    Version(&'a [u8]),
    /// One entry of `resources`.
    Resource(&'a [u8]),
    /// `type_url`.
    TypeUrl(&'a [u8]),
    /// `nonce`.
    Nonce(&'a [u8]),
    /// One entry of `removed_resources`.
    Removed(&'a [u8]),
    /// All parts of this response were given.
    End,
}

/// A client's connection with its one stream.
#[derive(Debug)]
pub(crate) struct Http2 {
    /// To be written.
    out: Vec<u8>,
    /// Messages that wait for the server's windows.
    waiting: Vec<u8>,
    window: i64,
    stream_window: i64,
    initial_window: i64,
    /// Head of a frame that was cut, then the payload of one that is no DATA.
    partial: Vec<u8>,
    /// Of a DATA frame, what is still to come.
    data_left: usize,
    received: u64,
    ended: bool,
    responses: Responses,
}

/// gRPC frames of discovery responses, read piece by piece.
#[derive(Debug, Default)]
struct Responses {
    /// What is still to come of the message.
    left: usize,
    within: bool,
    /// A prefix or field that was cut.
    partial: Vec<u8>,
}

/// Read a varint. Out: its value and length; none if it was cut.
pub(crate) fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

/// The length of a field with its key, and where its content begins; none if too little is there
/// to know.
fn field(bytes: &[u8]) -> Result<Option<(u64, usize, usize)>> {
    let Some((key, first)) = varint(bytes) else {
        ensure!(bytes.len() < 10, "a key of a field is no varint");
        return Ok(None);
    };
    let Some((value, second)) = varint(&bytes[first..]) else {
        ensure!(bytes.len() < first + 10, "the length of a field is no varint");
        return Ok(None);
    };
    match key & 7 {
        0 => Ok(Some((key >> 3, first, first + second))),
        2 => {
            let from = first + second;
            Ok(Some((key >> 3, from, from + usize::try_from(value)?)))
        }
        other => bail!("a discovery response has no field of wire type {other}"),
    }
}

// === impl Http2 ===

impl Http2 {
    /// A new connection, with the request that opens the stream.
    pub(crate) fn open(authority: &str, path: &str, tls: bool) -> Self {
        let mut out = Vec::from(PREFACE);
        // SETTINGS_INITIAL_WINDOW_SIZE is 4.
        frame(&mut out, SETTINGS, 0, 0, &[&[0, 4], &WINDOW.to_be_bytes()[..]].concat());
        frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW - 65_535).to_be_bytes());
        // Indexes of the static table of HPACK: POST is 3, http 6, https 7, :path 4, :authority 1,
        // content-type 31. Texts are literals, shorter than 127, without Huffman.
        let mut head = vec![0x83, if tls { 0x87 } else { 0x86 }];
        let mut literal = |prefix: &[u8], text: &str| {
            head.extend_from_slice(prefix);
            head.push(text.len() as u8);
            head.extend_from_slice(text.as_bytes());
        };
        literal(&[0x04], path);
        literal(&[0x01], authority);
        literal(&[0x0f, 0x10], "application/grpc");
        literal(&[0x00, 2, b't', b'e'], "trailers");
        frame(&mut out, HEADERS, 4, STREAM, &head);
        Self {
            out,
            waiting: Vec::new(),
            window: 65_535,
            stream_window: 65_535,
            initial_window: 65_535,
            partial: Vec::new(),
            data_left: 0,
            received: 0,
            ended: false,
            responses: Responses::default(),
        }
    }

    /// Send a message as soon as the server allows.
    pub(crate) fn send(&mut self, message: &[u8]) {
        self.waiting.push(0);
        self.waiting.extend_from_slice(&(message.len() as u32).to_be_bytes());
        self.waiting.extend_from_slice(message);
        self.pass_windows();
    }

    /// What is to be written; the caller takes off what it wrote.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Whether the server has ended the stream, or is about to close the connection.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Work in what was read; parts of responses go to `each`.
    pub(crate) fn receive(
        &mut self,
        mut bytes: &[u8],
        each: &mut impl FnMut(Part<'_>) -> Result<()>,
    ) -> Result<()> {
        while !bytes.is_empty() {
            if self.data_left > 0 {
                let (now, rest) = bytes.split_at(bytes.len().min(self.data_left));
                self.data_left -= now.len();
                bytes = rest;
                self.responses.receive(now, each)?;
                continue;
            }
            let need = match self.partial.len() {
                0..9 => 9,
                _ => 9 + length(&self.partial),
            };
            let (now, rest) = bytes.split_at(bytes.len().min(need - self.partial.len()));
            self.partial.extend_from_slice(now);
            bytes = rest;
            if self.partial.len() < need {
                break;
            }
            if need == 9 && self.partial[3] == DATA {
                self.on_data()?;
            } else if need > 9 || length(&self.partial) == 0 {
                self.on_frame()?;
            }
        }
        Ok(())
    }

    fn on_data(&mut self) -> Result<()> {
        let flags = self.partial[4];
        ensure!(flags & 8 == 0, "padded DATA is not understood");
        self.ended |= flags & 1 != 0;
        self.data_left = length(&self.partial);
        self.partial.clear();
        self.received += self.data_left as u64;
        if self.received > REFILL {
            let more = (self.received as u32).to_be_bytes();
            frame(&mut self.out, WINDOW_UPDATE, 0, 0, &more);
            frame(&mut self.out, WINDOW_UPDATE, 0, STREAM, &more);
            self.received = 0;
        }
        Ok(())
    }

    fn on_frame(&mut self) -> Result<()> {
        let (kind, flags) = (self.partial[3], self.partial[4]);
        let on_stream = self.partial[5..9] != [0; 4];
        let payload = &self.partial[9..];
        match kind {
            SETTINGS if flags & 1 == 0 => {
                for setting in payload.chunks_exact(6) {
                    if setting[..2] == [0, 4] {
                        let value = i64::from(u32_at(setting, 2));
                        self.stream_window += value - self.initial_window;
                        self.initial_window = value;
                    }
                }
                frame(&mut self.out, SETTINGS, 1, 0, &[]);
            }
            PING if flags & 1 == 0 => frame(&mut self.out, PING, 1, 0, payload),
            WINDOW_UPDATE if payload.len() == 4 => {
                let more = i64::from(u32_at(payload, 0));
                *(if on_stream { &mut self.stream_window } else { &mut self.window }) += more;
            }
            HEADERS => self.ended |= flags & 1 != 0,
            RST_STREAM | GOAWAY => self.ended = true,
            _ => {}
        }
        self.partial.clear();
        self.pass_windows();
        Ok(())
    }

    fn pass_windows(&mut self) {
        let mut from = 0;
        while from < self.waiting.len() {
            let allowed = usize::try_from(self.window.min(self.stream_window)).unwrap_or(0);
            let size = allowed.min(FRAME).min(self.waiting.len() - from);
            if size == 0 {
                break;
            }
            frame(&mut self.out, DATA, 0, STREAM, &self.waiting[from..from + size]);
            self.window -= size as i64;
            self.stream_window -= size as i64;
            from += size;
        }
        self.waiting.drain(..from);
        if self.waiting.is_empty() {
            // A first request is large, and there are thousands of streams.
            self.waiting = Vec::new();
        }
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn length(head: &[u8]) -> usize {
    u32_at(&[0, head[0], head[1], head[2]], 0) as usize
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |four| u32::from_be_bytes(*four))
}

// === impl Responses ===

impl Responses {
    fn receive(
        &mut self,
        bytes: &[u8],
        each: &mut impl FnMut(Part<'_>) -> Result<()>,
    ) -> Result<()> {
        if self.partial.is_empty() {
            let used = self.parts(bytes, each)?;
            self.partial.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        let mut partial = std::mem::take(&mut self.partial);
        let mut bytes = bytes;
        // Complete what was cut, and no more: the rest needs no copy.
        while !bytes.is_empty() && !partial.is_empty() {
            let missing = self.missing(&partial)?.min(bytes.len());
            partial.extend_from_slice(&bytes[..missing]);
            bytes = &bytes[missing..];
            let used = self.parts(&partial, each)?;
            partial.drain(..used);
        }
        self.partial = partial;
        if self.partial.is_empty() {
            let used = self.parts(bytes, each)?;
            self.partial.extend_from_slice(&bytes[used..]);
        }
        Ok(())
    }

    /// Bytes without which what was cut says nothing new.
    fn missing(&self, partial: &[u8]) -> Result<usize> {
        if !self.within {
            return Ok(5 - partial.len());
        }
        Ok(field(partial)?.map_or(1, |(_, _, end)| end - partial.len()))
    }

    /// Give every part that is complete. Out: bytes used up.
    fn parts(
        &mut self,
        bytes: &[u8],
        each: &mut impl FnMut(Part<'_>) -> Result<()>,
    ) -> Result<usize> {
        let mut at = 0;
        loop {
            if !self.within {
                let Some(prefix) = bytes[at..].first_chunk::<5>() else { return Ok(at) };
                ensure!(prefix[0] == 0, "a compressed message is not understood");
                self.left = u32_at(prefix, 1) as usize;
                self.within = true;
                at += 5;
            }
            while self.left > 0 {
                let Some((number, from, end)) = field(&bytes[at..])? else { return Ok(at) };
                if bytes.len() - at < end {
                    return Ok(at);
                }
                ensure!(end <= self.left, "a field is longer than its message");
                let content = &bytes[at + from..at + end];
                match number {
                    1 => each(Part::Version(content))?,
                    2 => each(Part::Resource(content))?,
                    4 => each(Part::TypeUrl(content))?,
                    5 => each(Part::Nonce(content))?,
                    6 => each(Part::Removed(content))?,
                    _ => {}
                }
                at += end;
                self.left -= end;
            }
            self.within = false;
            each(Part::End)?;
        }
    }
}

/// A `DeltaDiscoveryRequest` or `DiscoveryRequest`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request<'a> {
    /// An encoded node, on the first request of a stream.
    pub(crate) node: Option<&'a [u8]>,
    pub(crate) type_url: &'a str,
    /// Names that are subscribed to: delta, the new ones; state of the world, all.
    pub(crate) names: Vec<&'a str>,
    pub(crate) unsubscribed: Vec<&'a str>,
    /// Delta: what is held since an earlier stream.
    pub(crate) versions: Vec<(&'a str, &'a str)>,
    /// State of the world.
    pub(crate) version: &'a str,
    pub(crate) nonce: &'a str,
    pub(crate) error: Option<String>,
}

// === impl Request ===

impl Request<'_> {
    pub(crate) fn delta(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.node.inspect(|node| put_field(&mut out, 1, node));
        put_field(&mut out, 2, self.type_url.as_bytes());
        for name in &self.names {
            put_field(&mut out, 3, name.as_bytes());
        }
        for name in &self.unsubscribed {
            put_field(&mut out, 4, name.as_bytes());
        }
        for (name, version) in &self.versions {
            let mut entry = Vec::with_capacity(name.len() + version.len() + 8);
            put_field(&mut entry, 1, name.as_bytes());
            put_field(&mut entry, 2, version.as_bytes());
            put_field(&mut out, 5, &entry);
        }
        self.put_end(&mut out, 6, 7);
        out
    }

    pub(crate) fn state_of_the_world(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.version.is_empty() {
            put_field(&mut out, 1, self.version.as_bytes());
        }
        self.node.inspect(|node| put_field(&mut out, 2, node));
        for name in &self.names {
            put_field(&mut out, 3, name.as_bytes());
        }
        put_field(&mut out, 4, self.type_url.as_bytes());
        self.put_end(&mut out, 5, 6);
        out
    }

    fn put_end(&self, out: &mut Vec<u8>, nonce: u32, error: u32) {
        if !self.nonce.is_empty() {
            put_field(out, nonce, self.nonce.as_bytes());
        }
        if let Some(text) = &self.error {
            // `google.rpc.Status` with code INVALID_ARGUMENT.
            let mut status = vec![8, 3];
            put_field(&mut status, 2, text.as_bytes());
            put_field(out, error, &status);
        }
    }
}

#[cfg(test)]
mod tests {
    use envoy_api::Any;
    use envoy_api::envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, Resource,
    };
    use prost::Message as _;

    use super::*;

    fn response(count: usize) -> DeltaDiscoveryResponse {
        let resources = (0..count).map(|n| Resource {
            name: format!("resource-{n}"),
            version: n.to_string(),
            resource: Some(Any { type_url: "t".to_owned(), value: vec![7; 40 * n].into() }),
            ..Default::default()
        });
        DeltaDiscoveryResponse {
            resources: resources.collect(),
            type_url: "t".to_owned(),
            nonce: "n".to_owned(),
            removed_resources: vec!["gone".to_owned()],
            ..Default::default()
        }
    }

    fn on_the_wire(responses: &[DeltaDiscoveryResponse]) -> Vec<u8> {
        let mut message = Vec::new();
        for response in responses {
            message.push(0);
            message.extend_from_slice(&(response.encoded_len() as u32).to_be_bytes());
            response.encode(&mut message).unwrap();
        }
        let mut out = Vec::new();
        frame(&mut out, SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]);
        frame(&mut out, HEADERS, 4, STREAM, &[0x88]);
        for piece in message.chunks(1000) {
            frame(&mut out, DATA, 0, STREAM, piece);
            frame(&mut out, PING, 0, 0, &[0; 8]);
        }
        out
    }

    #[test]
    fn however_a_response_is_cut_the_same_parts_come_out() {
        let sent = [response(0), response(30), response(3)];
        let wire = on_the_wire(&sent);
        for size in [1, 2, 7, 333, 4096, wire.len()] {
            let mut http2 = Http2::open("a", "/p", false);
            let mut got = vec![DeltaDiscoveryResponse::default()];
            let mut each = |part: Part<'_>| {
                let last = got.last_mut().unwrap();
                match part {
                    Part::Resource(bytes) => last.resources.push(Resource::decode(bytes)?),
                    Part::TypeUrl(url) => last.type_url = str::from_utf8(url)?.to_owned(),
                    Part::Nonce(nonce) => last.nonce = str::from_utf8(nonce)?.to_owned(),
                    Part::Removed(name) => {
                        last.removed_resources.push(str::from_utf8(name)?.to_owned());
                    }
                    Part::End => got.push(DeltaDiscoveryResponse::default()),
                    Part::Version(_) => {}
                }
                Ok(())
            };
            for piece in wire.chunks(size) {
                http2.receive(piece, &mut each).unwrap();
            }
            assert_eq!(got[..3], sent, "pieces of {size}");
        }
    }

    #[test]
    fn a_message_waits_for_the_windows_of_the_server() {
        let mut http2 = Http2::open("a", "/p", false);
        http2.output().clear();
        http2.send(&[1; 100_000]);
        let heads = |bytes: usize| bytes.div_ceil(FRAME) * 9;
        assert_eq!(http2.output().len(), 65_535 + heads(65_535));
        http2.output().clear();
        let mut more = Vec::new();
        frame(&mut more, WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes());
        http2.receive(&more, &mut |_| Ok(())).unwrap();
        assert!(http2.output().is_empty(), "the stream's own window is used up");
        more.clear();
        frame(&mut more, SETTINGS, 0, 0, &[0, 4, 0, 2, 0, 0]);
        http2.receive(&more, &mut |_| Ok(())).unwrap();
        assert_eq!(http2.output().len(), 100_005 - 65_535 + heads(100_005 - 65_535) + 9);
    }

    #[test]
    fn requests_are_what_servers_understand() {
        let request = Request {
            type_url: "t",
            names: vec!["a", "b"],
            unsubscribed: vec!["c"],
            versions: vec![("d", "1")],
            version: "2",
            nonce: "n",
            error: Some("bad".to_owned()),
            ..Default::default()
        };
        let delta = DeltaDiscoveryRequest::decode(&*request.delta()).unwrap();
        assert_eq!(delta.resource_names_subscribe, ["a", "b"]);
        assert_eq!(delta.resource_names_unsubscribe, ["c"]);
        assert_eq!(delta.initial_resource_versions["d"], "1");
        assert_eq!((&*delta.response_nonce, &*delta.type_url), ("n", "t"));
        assert_eq!(delta.error_detail.unwrap().message, "bad");
        let sotw = DiscoveryRequest::decode(&*request.state_of_the_world()).unwrap();
        assert_eq!((&*sotw.version_info, &*sotw.response_nonce), ("2", "n"));
        assert_eq!(sotw.resource_names, ["a", "b"]);
    }
}
