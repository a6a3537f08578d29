//! The control socket: a Unix stream on which a client sends one JSON value a
//! line and gets JSON lines back.
//!
//! Only root and the daemon's own user are served, whatever the socket's
//! mode. A client that sends more than it reads is closed.

use crate::reactor::Reactor;
use crate::stream::{Buffered, Input};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::Mode;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

const LISTENER: u64 = 0;
/// Longest request line, in bytes.
const MAX_REQUEST: usize = 1 << 16;
/// Bytes of answer that may wait for a client.
const MAX_WAITING: usize = 64 << 20;
/// Clients at a time.
const MAX_CLIENTS: usize = 64;

/// A connected client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(u64);

#[derive(Debug)]
struct Connection {
    stream: Buffered<UnixStream>,
    closing: bool,
    waiting: bool,
}

/// Serves a control socket from an event loop: add it to a [`Reactor`] and
/// call [`Server::poll`] whenever it is ready.
#[derive(Debug)]
pub struct Server {
    reactor: Reactor,
    listener: UnixListener,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    path: PathBuf,
}

impl Server {
    /// Listens at `path`, replacing a socket that nobody listens on, and
    /// creating the directory it lies in.
    ///
    /// # Errors
    /// `AddrInUse` if another daemon listens there; else what the system
    /// says about the path.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        remove_stale(path)?;
        let old = nix::sys::stat::umask(Mode::from_bits_truncate(0o117));
        let listener = UnixListener::bind(path);
        nix::sys::stat::umask(old);
        let listener = listener?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
        listener.set_nonblocking(true)?;
        let reactor = Reactor::new()?;
        reactor.add(&listener, LISTENER)?;
        Ok(Self {
            reactor,
            listener,
            connections: BTreeMap::new(),
            next: LISTENER + 1,
            path: path.to_owned(),
        })
    }

    /// Accepts, reads and writes what can be without waiting, and returns
    /// the complete requests.
    ///
    /// # Errors
    /// The server's own descriptors are broken.
    pub fn poll(&mut self) -> io::Result<Vec<(ClientId, serde_json::Value)>> {
        let mut requests = Vec::new();
        let mut ready = Vec::new();
        self.reactor
            .wait(Some(std::time::Duration::ZERO), &mut ready)?;
        for token in ready {
            if token == LISTENER {
                self.accept();
            } else {
                self.read(token, &mut requests);
                self.flush(token);
            }
        }
        Ok(requests)
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.connections.len() >= MAX_CLIENTS || !may_control(&stream) {
                continue;
            }
            let token = self.next;
            let ready = stream
                .set_nonblocking(true)
                .and_then(|()| self.reactor.add(&stream, token));
            if ready.is_ok() {
                self.next += 1;
                let connection = Connection {
                    stream: Buffered::new(stream, MAX_WAITING),
                    closing: false,
                    waiting: false,
                };
                self.connections.insert(token, connection);
            }
        }
    }

    fn read(&mut self, token: u64, requests: &mut Vec<(ClientId, serde_json::Value)>) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        let input = connection.stream.fill();
        let mut good = true;
        while let Some(line) = connection.stream.line() {
            match serde_json::from_slice(&line) {
                Ok(value) if line.len() <= MAX_REQUEST => requests.push((ClientId(token), value)),
                _ => good = false,
            }
        }
        let pending = connection.stream.input.len();
        match input {
            Ok(Input::Open) if good && pending <= MAX_REQUEST => {}
            // The answers to what was asked are still wanted.
            Ok(Input::Closed) if good && requests.iter().any(|(id, _)| id.0 == token) => {}
            _ => self.close(token),
        }
    }

    /// Queues one line for `client`. A client that is gone or reads too
    /// slowly is forgotten.
    pub fn send(&mut self, client: ClientId, value: &impl Serialize) {
        let Some(connection) = self.connections.get_mut(&client.0) else {
            return;
        };
        let sent = serde_json::to_vec(value).is_ok_and(|mut line| {
            line.push(b'\n');
            connection.stream.push(&line)
        });
        if sent {
            self.flush(client.0);
        } else {
            self.close(client.0);
        }
    }

    /// Closes the connection once everything queued is written.
    pub fn finish(&mut self, client: ClientId) {
        if let Some(connection) = self.connections.get_mut(&client.0) {
            connection.closing = true;
        }
        self.flush(client.0);
    }

    /// Whether `client` is still there.
    pub fn is_connected(&self, client: ClientId) -> bool {
        self.connections.contains_key(&client.0)
    }

    fn flush(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        match connection.stream.flush() {
            Ok(true) if connection.closing => self.close(token),
            Ok(done) => {
                if connection.waiting == done {
                    connection.waiting = !done;
                    let _ = self.reactor.interest(&connection.stream.io, token, !done);
                }
            }
            Err(_) => self.close(token),
        }
    }

    fn close(&mut self, token: u64) {
        if let Some(connection) = self.connections.remove(&token) {
            let _ = self.reactor.remove(&connection.stream.io);
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reactor.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that nobody listens on, and nothing else.
pub(crate) fn remove_stale(path: &Path) -> io::Result<()> {
    if UnixStream::connect(path).is_ok() {
        let taken = io::ErrorKind::AddrInUse;
        return Err(io::Error::new(taken, "another daemon listens there"));
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
            std::fs::remove_file(path)
        }
        Ok(_) => {
            let exists = io::ErrorKind::AlreadyExists;
            Err(io::Error::new(exists, "a file that is no socket is there"))
        }
        Err(_) => Ok(()),
    }
}

fn may_control(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    match getsockopt(stream, PeerCredentials) {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "control client refused");
            false
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use serde_json::json;
    use std::io::Write;

    fn pump(server: &mut Server) -> Vec<(ClientId, serde_json::Value)> {
        let outer = Reactor::new().unwrap();
        outer.add(&*server, 1).unwrap();
        for _ in 0..100 {
            outer
                .wait(Some(std::time::Duration::from_secs(5)), &mut Vec::new())
                .unwrap();
            let requests = server.poll().unwrap();
            if !requests.is_empty() {
                return requests;
            }
        }
        panic!("no request came");
    }

    #[test]
    fn a_request_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/control");
        let mut server = Server::bind(&path).unwrap();
        let client = std::thread::spawn(move || {
            let mut client = Client::connect(&path).unwrap();
            client.request(&json!({"op": "status"})).unwrap()
        });
        let (id, request) = pump(&mut server).remove(0);
        assert_eq!(request, json!({"op": "status"}));
        server.send(id, &json!({"ok": true}));
        server.finish(id);
        assert_eq!(client.join().unwrap(), json!({"ok": true}));
        assert!(!server.is_connected(id));
    }

    #[test]
    fn garbage_closes_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let mut server = Server::bind(&path).unwrap();
        let mut bad = UnixStream::connect(&path).unwrap();
        bad.write_all(b"{nonsense\n").unwrap();
        let good = std::thread::spawn({
            let path = path.clone();
            move || Client::connect(&path)?.request(&json!(1))
        });
        let (id, _) = pump(&mut server).remove(0);
        server.send(id, &json!(2));
        assert_eq!(good.join().unwrap().unwrap(), json!(2));
        let mut rest = Vec::new();
        io::Read::read_to_end(&mut bad, &mut rest).unwrap();
        assert!(rest.is_empty());
    }

    #[test]
    fn a_second_daemon_is_refused_and_a_stale_socket_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let server = Server::bind(&path).unwrap();
        assert_eq!(
            Server::bind(&path).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(server);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        Server::bind(&path).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        std::fs::write(&path, "precious").unwrap();
        assert!(Server::bind(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
