//! A socket, TLS on it or not, HTTP/2 on that.
//!
//! In: readiness of the socket. Out: parts of responses; what became of the connection.
//!
//! **Invariant:** never blocks; a connection that is dropped is reset, so that its port is free at
//! once.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use identity::folder::read_ca;
use identity::{Authority, CertifiedRequest, PrivateKey, SpiffeId, client, tls};
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::wire::{Http2, Part};

/// Receive buffer of a proxy that reads slowly: the kernel must not take for it what the server has
/// to keep. Larger than a segment on loopback, else the sender's timers are what is measured.
const SLOW_BUFFER: usize = 128 << 10;

/// How a proxy reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pace {
    #[default]
    Normal,
    /// Not at all.
    Frozen,
    /// So many bytes a second.
    Slow(u32),
}

/// What is left after a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// Nothing: the socket tells when there is more.
    Blocked,
    More,
    Ended,
}

/// A connection of one proxy.
pub(crate) struct Connection {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    http2: Http2,
    answered: bool,
}

/// Certificates of proxies, signed by a controller's authority.
pub(crate) struct Tls {
    authority: Authority,
    configs: Mutex<HashMap<String, Arc<ClientConfig>>>,
}

// === impl Connection ===

impl Connection {
    /// Begin to connect.
    pub(crate) fn open(
        server: SocketAddr,
        from: Ipv4Addr,
        registry: &Registry,
        token: Token,
        http2: Http2,
        tls: Option<Arc<ClientConfig>>,
    ) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        // Reset when dropped.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&SocketAddr::from((from, 0)).into()).context("binding a proxy's address")?;
        match socket.connect(&server.into()) {
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            other => other.with_context(|| format!("connecting to {server}"))?,
        }
        let mut socket = TcpStream::from_std(socket.into());
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        let tls = tls.map(|config| ClientConnection::new(config, server.ip().into()));
        Ok(Self { socket, tls: tls.transpose()?.map(Box::new), http2, answered: false })
    }

    pub(crate) fn http2(&mut self) -> &mut Http2 {
        &mut self.http2
    }

    /// Whether the server has sent anything.
    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    pub(crate) fn set_pace(&self, pace: Pace) -> Result<()> {
        if pace != Pace::Normal {
            SockRef::from(&self.socket).set_recv_buffer_size(SLOW_BUFFER)?;
        }
        Ok(())
    }

    /// Read once into `buffer`. Out: bytes, those of TLS not counted, and what is left.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        each: &mut impl FnMut(Part<'_>) -> Result<()>,
    ) -> Result<(usize, Read)> {
        let read = match &mut self.tls {
            None => self.socket.read(buffer),
            Some(tls) => tls.read_tls(&mut self.socket),
        };
        let bytes = match read {
            Ok(0) => return Ok((0, Read::Ended)),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok((0, Read::Blocked)),
            // Reset, or refused: another attempt follows.
            Err(_) => return Ok((0, Read::Ended)),
        };
        let (bytes, left) = match &mut self.tls {
            None => {
                self.answered = true;
                self.http2.receive(&buffer[..bytes], each)?;
                (bytes, if bytes < buffer.len() { Read::Blocked } else { Read::More })
            }
            Some(tls) => {
                tls.process_new_packets().context("TLS")?;
                let mut decrypted = 0;
                loop {
                    match tls.reader().read(buffer) {
                        Ok(0) => return Ok((decrypted, Read::Ended)),
                        Ok(plain) => {
                            self.answered = true;
                            decrypted += plain;
                            self.http2.receive(&buffer[..plain], each)?;
                        }
                        Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                        Err(error) => return Err(error).context("TLS"),
                    }
                }
                // It read into a buffer of its own, whose size is not known here.
                (decrypted, Read::More)
            }
        };
        Ok(if self.http2.ended() { (bytes, Read::Ended) } else { (bytes, left) })
    }

    /// Write what waits. Out: bytes.
    pub(crate) fn write(&mut self) -> Result<usize> {
        let mut written = 0;
        loop {
            let out = self.http2.output();
            let wrote = match &mut self.tls {
                None => match out.is_empty() {
                    true => return Ok(written),
                    false => self.socket.write(out).inspect(|bytes| drop(out.drain(..*bytes))),
                },
                Some(tls) => {
                    // It takes as much as its buffer has room for.
                    let taken = tls.writer().write(out)?;
                    out.drain(..taken);
                    match tls.wants_write() {
                        true => tls.write_tls(&mut self.socket),
                        false => return Ok(written),
                    }
                }
            };
            if self.http2.output().is_empty() {
                // A first request is large, and there are thousands of connections.
                *self.http2.output() = Vec::new();
            }
            match wrote {
                Ok(bytes) => written += bytes,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) =>
                {
                    return Ok(written);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

// === impl Tls ===

impl Tls {
    /// Certificates by the authority in this folder of a controller.
    pub(crate) fn of(identity: &std::path::Path) -> Result<Self> {
        let files = read_ca(&identity.join("ca"))?;
        let authority = Authority::from_files(&files, SystemTime::now())?;
        Ok(Self { authority, configs: Mutex::default() })
    }

    /// Settings of the proxies of a namespace.
    pub(crate) fn client(&self, namespace: &str) -> Result<Arc<ClientConfig>> {
        let mut configs = self.configs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(config) = configs.get(namespace) {
            return Ok(config.clone());
        }
        let id: SpiffeId = format!("spiffe://cluster.local/ns/{namespace}/sa/default").parse()?;
        let key = PrivateKey::generate()?;
        let csr = client::csr(&key, None)?;
        let request = CertifiedRequest::check(csr.as_bytes(), &id)?;
        let day = Duration::from_secs(24 * 3600);
        let issued = self.authority.issue(&id, &request, day, SystemTime::now())?;
        let certificate = Some((vec![issued.der], &key));
        let mut config = tls::client_config(self.authority.roots(), certificate)?;
        // The proxies of a namespace share these settings, and would share sessions.
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        configs.insert(namespace.to_owned(), config.clone());
        Ok(config)
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}
