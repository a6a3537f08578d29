//! Metrics in OpenMetrics text, served over HTTP on a local TCP port or a
//! Unix socket.

use crate::reactor::Reactor;
use crate::stream::{Buffered, Input};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

const LISTENER: u64 = 0;
const MAX_REQUEST: usize = 8192;
const MAX_ANSWER: usize = 4 << 20;
const MAX_CLIENTS: usize = 16;

/// Whether a figure only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; the name gets the suffix `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// One metric with a value per set of labels.
#[derive(Debug, Clone)]
pub struct Metric {
    /// Name without suffix.
    pub name: String,
    /// One sentence without a full stop.
    pub help: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Labels and value.
    pub samples: Vec<(Vec<(&'static str, String)>, u64)>,
}

impl Metric {
    /// A metric without labels.
    pub fn single(name: impl Into<String>, help: &'static str, kind: Kind, value: u64) -> Self {
        Self {
            name: name.into(),
            help,
            kind,
            samples: vec![(Vec::new(), value)],
        }
    }
}

/// OpenMetrics text of `metrics`.
pub fn render(metrics: Vec<Metric>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(metrics)));
    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &registry) {
        tracing::warn!(%error, "encoding metrics");
    }
    text
}

#[derive(Debug)]
struct Snapshot(Vec<Metric>);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for metric in &self.0 {
            let ty = match metric.kind {
                Kind::Counter => ConstCounter::new(0u64).metric_type(),
                Kind::Gauge => ConstGauge::new(0u64).metric_type(),
            };
            let mut family = encoder.encode_descriptor(&metric.name, metric.help, None, ty)?;
            if let [(labels, value)] = metric.samples.as_slice() {
                if labels.is_empty() {
                    encode(metric.kind, *value, family)?;
                    continue;
                }
            }
            for (labels, value) in &metric.samples {
                let labels: Vec<(&str, &str)> =
                    labels.iter().map(|(k, v)| (*k, v.as_str())).collect();
                encode(metric.kind, *value, family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn encode(kind: Kind, value: u64, encoder: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        Kind::Counter => ConstCounter::new(value).encode(encoder),
        Kind::Gauge => ConstGauge::new(value).encode(encoder),
    }
}

/// Where metrics are served: `127.0.0.1:9121`, `[::1]:9121` or an absolute
/// path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A loopback address and port.
    Tcp(std::net::SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s.starts_with('/') {
            return Ok(Self::Unix(s.into()));
        }
        match s.parse::<std::net::SocketAddr>() {
            Ok(addr) if addr.ip().is_loopback() => Ok(Self::Tcp(addr)),
            Ok(addr) => Err(format!("metrics address {addr} is not a loopback address")),
            Err(_) => Err(format!(
                "metrics address {s:?} is neither ADDRESS:PORT nor an absolute path"
            )),
        }
    }
}

trait Stream: Read + Write + AsFd + fmt::Debug {}
impl<T: Read + Write + AsFd + fmt::Debug> Stream for T {}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Tcp(l) => {
                let (stream, _) = l.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(l, _) => {
                let (stream, _) = l.accept()?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[derive(Debug)]
struct Connection {
    stream: Buffered<Box<dyn Stream>>,
    answered: bool,
}

/// Answers every GET with the metrics, one request a connection.
#[derive(Debug)]
pub struct Exporter {
    reactor: Reactor,
    listener: Listener,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

impl Exporter {
    /// Listens at `address`.
    ///
    /// # Errors
    /// The address is taken or not permitted.
    pub fn bind(address: &Address) -> io::Result<Self> {
        let reactor = Reactor::new()?;
        let listener = match address {
            Address::Tcp(addr) => {
                let listener = TcpListener::bind(addr)?;
                listener.set_nonblocking(true)?;
                reactor.add(&listener, LISTENER)?;
                Listener::Tcp(listener)
            }
            Address::Unix(path) => {
                crate::control::remove_stale(path)?;
                let listener = UnixListener::bind(path)?;
                listener.set_nonblocking(true)?;
                reactor.add(&listener, LISTENER)?;
                Listener::Unix(listener, path.clone())
            }
        };
        Ok(Self {
            reactor,
            listener,
            connections: BTreeMap::new(),
            next: LISTENER + 1,
        })
    }

    /// Serves what is ready; `collect` is called once per request.
    ///
    /// # Errors
    /// The exporter's own descriptors are broken.
    pub fn poll(&mut self, mut collect: impl FnMut() -> Vec<Metric>) -> io::Result<()> {
        let mut ready = Vec::new();
        self.reactor.wait(Some(Duration::ZERO), &mut ready)?;
        for token in ready {
            if token == LISTENER {
                self.accept();
            } else if !self.serve(token, &mut collect) {
                if let Some(connection) = self.connections.remove(&token) {
                    let _ = self.reactor.remove(&connection.stream.io);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self) {
        while let Ok(stream) = self.listener.accept() {
            if self.connections.len() >= MAX_CLIENTS {
                // Make room: the oldest has had its time.
                self.connections.pop_first();
            }
            let token = self.next;
            self.next += 1;
            if self.reactor.add(&stream, token).is_ok() {
                let connection = Connection {
                    stream: Buffered::new(stream, MAX_ANSWER),
                    answered: false,
                };
                self.connections.insert(token, connection);
            }
        }
    }

    /// Goes on with one connection; false when it is over.
    fn serve(&mut self, token: u64, collect: &mut impl FnMut() -> Vec<Metric>) -> bool {
        let Some(connection) = self.connections.get_mut(&token) else {
            return false;
        };
        let input = connection.stream.fill();
        let complete = connection.stream.input.windows(4).any(|w| w == b"\r\n\r\n");
        if complete && !connection.answered {
            connection.answered = true;
            let answer = answer(&connection.stream.input, collect);
            if !connection.stream.push(answer.as_bytes()) {
                return false;
            }
        }
        let fits = connection.stream.input.len() <= MAX_REQUEST;
        let open = matches!(input, Ok(Input::Open)) || connection.answered;
        match connection.stream.flush() {
            Ok(true) => fits && open && !connection.answered,
            Ok(false) => self
                .reactor
                .interest(&connection.stream.io, token, true)
                .is_ok(),
            Err(_) => false,
        }
    }
}

fn answer(request: &[u8], collect: &mut impl FnMut() -> Vec<Metric>) -> String {
    if !request.starts_with(b"GET ") {
        return "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Length: 0\r\n\
                Connection: close\r\n\r\n"
            .to_owned();
    }
    let body = render(collect());
    format!(
        "HTTP/1.1 200 OK\r\n\
         Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

impl AsFd for Exporter {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reactor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn metrics() -> Vec<Metric> {
        vec![
            Metric::single("packets", "Packets seen", Kind::Counter, 7),
            Metric {
                name: "flows".into(),
                help: "Flows in the cache",
                kind: Kind::Gauge,
                samples: vec![
                    (vec![("cache", "internal".into())], 3),
                    (vec![("cache", "external".into())], 4),
                ],
            },
        ]
    }

    #[test]
    fn text_is_openmetrics() {
        assert_eq!(
            render(metrics()),
            "# HELP packets Packets seen\n# TYPE packets counter\npackets_total 7\n\
             # HELP flows Flows in the cache\n# TYPE flows gauge\n\
             flows{cache=\"internal\"} 3\nflows{cache=\"external\"} 4\n# EOF\n"
        );
    }

    #[test]
    fn only_local_addresses_are_taken() {
        assert!("127.0.0.1:9121".parse::<Address>().is_ok());
        assert!("[::1]:9121".parse::<Address>().is_ok());
        assert!("/run/x/metrics".parse::<Address>().is_ok());
        assert!("0.0.0.0:9121".parse::<Address>().is_err());
        assert!("metrics".parse::<Address>().is_err());
    }

    #[test]
    fn a_file_in_the_way_of_the_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics");
        std::fs::write(&path, "precious").unwrap();
        assert!(Exporter::bind(&Address::Unix(path.clone())).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_get_is_answered_and_anything_else_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics");
        let mut exporter = Exporter::bind(&Address::Unix(path.clone())).unwrap();
        for (request, expected) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200 OK"),
            ("POST / HTTP/1.1\r\n\r\n", "HTTP/1.1 405"),
        ] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(request.as_bytes()).unwrap();
            exporter.poll(metrics).unwrap();
            exporter.poll(metrics).unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert!(text.starts_with(expected), "{text}");
        }
    }
}
