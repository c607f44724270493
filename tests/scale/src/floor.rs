//! The floor: a server that knows nothing and sends fixed bytes.
//!
//! In: resources over a control connection, streams of proxies. Out: to each first request of a
//! type all of that type; to every stream each change. All streams share the bytes.
//!
//! No other server of the same wire load can do less, so figures of others are read as multiples.
//!
//! **Invariant:** looks into a request no further than to its type, and whether it resumes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use envoy_api::ResourceType;
use envoy_api::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::broadcast;

use crate::known::{TYPES, index};

const BACKLOG: u32 = 4096;
/// Changes that a stream may be behind.
const CHANGES: usize = 1 << 16;
const WINDOW: u32 = 1 << 20;

/// What is looked at of a `DeltaDiscoveryRequest`.
#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, tag = "2")]
    type_url: String,
    #[prost(bytes = "bytes", repeated, tag = "5")]
    versions: Vec<Bytes>,
    #[prost(string, tag = "6")]
    nonce: String,
}

/// A response for everybody.
#[derive(Clone)]
struct Push {
    kind: usize,
    frame: Bytes,
}

struct Shared {
    world: Mutex<Served>,
    pushes: broadcast::Sender<Push>,
}

/// By type and name; and all of a type as one response, made when it is asked for.
#[derive(Default)]
struct Served {
    resources: [BTreeMap<String, Resource>; TYPES.len()],
    answers: [Option<Bytes>; TYPES.len()],
    /// The last change, for streams that resume.
    latest: [Option<Bytes>; TYPES.len()],
}

/// Serve until the process is stopped.
pub(crate) fn run(xds: SocketAddr, control: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let control = TcpListener::bind(control).await?;
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(xds)?;
        let listener = socket.listen(BACKLOG)?;
        let pushes = broadcast::channel(CHANGES).0;
        let shared = Arc::new(Shared { world: Mutex::default(), pushes });
        let feeder = tokio::spawn(feed(control, shared.clone()));
        let accepting = async {
            loop {
                let (socket, _) = listener.accept().await?;
                let shared = shared.clone();
                // A proxy that goes away ends its own connection only.
                tokio::spawn(async move { serve(socket, shared).await.ok() });
            }
        };
        tokio::select! {
            ended = feeder => ended?,
            ended = accepting => ended,
        }
    })
}

async fn feed(control: TcpListener, shared: Arc<Shared>) -> Result<()> {
    let (mut socket, _) = control.accept().await?;
    loop {
        let length = socket.read_u32().await? as usize;
        let mut message = vec![0; length];
        socket.read_exact(&mut message).await?;
        let resources = DeltaDiscoveryResponse::decode(&*message)?.resources;
        for push in shared.take(resources)? {
            // Nobody listens before the first proxy is there.
            let _none = shared.pushes.send(push);
        }
        socket.write_all(&[1]).await?;
    }
}

async fn serve(socket: TcpStream, shared: Arc<Shared>) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let mut connection = builder.handshake::<_, Bytes>(socket).await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let response = http::Response::builder().header("content-type", "application/grpc");
        let stream = respond.send_response(response.body(())?, false)?;
        tokio::spawn(talk(request.into_body(), stream, shared.clone()));
    }
    Ok(())
}

async fn talk(
    mut body: RecvStream,
    mut stream: SendStream<Bytes>,
    shared: Arc<Shared>,
) -> Result<()> {
    let mut pushes = shared.pushes.subscribe();
    let mut asked = [false; TYPES.len()];
    let mut buffer = BytesMut::new();
    loop {
        tokio::select! {
            data = body.data() => {
                let Some(data) = data.transpose()? else { return Ok(()) };
                body.flow_control().release_capacity(data.len())?;
                buffer.extend_from_slice(&data);
                while let Some(message) = message(&mut buffer) {
                    let Asked { type_url, versions, nonce } = Asked::decode(message)?;
                    let kind = ResourceType::from_type_url(&type_url).context("unknown type")?;
                    let first = !std::mem::replace(&mut asked[index(kind)], true);
                    let answer = match first && nonce.is_empty() {
                        false => None,
                        true if versions.is_empty() => Some(shared.answer(kind)),
                        true => shared.latest(kind),
                    };
                    if let Some(answer) = answer {
                        stream.send_data(answer, false)?;
                    }
                }
            }
            push = pushes.recv() => {
                let push = push?;
                if asked[push.kind] {
                    stream.send_data(push.frame, false)?;
                }
            }
        }
    }
}

/// The next message of a gRPC stream, once it is complete.
fn message(buffer: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(*buffer.get(1..5)?.first_chunk()?) as usize;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(length).freeze())
}

/// A response as a gRPC message.
fn framed(kind: ResourceType, resources: Vec<Resource>) -> Bytes {
    let response = DeltaDiscoveryResponse {
        resources,
        type_url: kind.type_url().to_owned(),
        nonce: "1".to_owned(),
        ..Default::default()
    };
    let length = response.encoded_len();
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(length as u32);
    // The buffer has the room.
    let _fits = response.encode(&mut out);
    out.freeze()
}

// === impl Shared ===

impl Shared {
    /// Keep what changed. Out: a response for each type.
    fn take(&self, resources: Vec<Resource>) -> Result<Vec<Push>> {
        let mut changed: BTreeMap<ResourceType, Vec<Resource>> = BTreeMap::new();
        let mut world = self.world();
        let begins = world.resources.iter().all(BTreeMap::is_empty);
        for resource in resources {
            let body = resource.resource.as_ref().context("a resource without a body")?;
            let kind = ResourceType::from_type_url(&body.type_url).context("unknown type")?;
            ensure!(TYPES.contains(&kind), "{kind} is not served here");
            world.answers[index(kind)] = None;
            world.resources[index(kind)].insert(resource.name.clone(), resource.clone());
            changed.entry(kind).or_default().push(resource);
        }
        let push = |(kind, resources)| {
            let push = Push { kind: index(kind), frame: framed(kind, resources) };
            world.latest[push.kind] = Some(push.frame.clone()).filter(|_| !begins);
            push
        };
        Ok(changed.into_iter().map(push).collect())
    }

    fn world(&self) -> MutexGuard<'_, Served> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn latest(&self, kind: ResourceType) -> Option<Bytes> {
        self.world().latest[index(kind)].clone()
    }

    fn answer(&self, kind: ResourceType) -> Bytes {
        let mut world = self.world();
        let Served { resources, answers, .. } = &mut *world;
        let all = || framed(kind, resources[index(kind)].values().cloned().collect());
        answers[index(kind)].get_or_insert_with(all).clone()
    }
}
