//! FTP peers: real servers and clients, and scripted ones that control
//! every byte.

pub mod adversary;
pub mod attack;
pub mod client;
pub mod control;
pub mod matrix;
mod proftpd;
mod pure_ftpd;
pub mod script;
pub mod server;
pub mod session;
pub mod suite;
mod vsftpd;

/// How client and server agree on the data connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The server listens, IPv4 (RFC 959).
    Pasv,
    /// The server listens, either family (RFC 2428).
    Epsv,
    /// The client listens, IPv4 (RFC 959).
    Port,
    /// The client listens, either family (RFC 2428).
    Eprt,
}

impl Mode {
    /// All of them, for loops.
    pub const ALL: [Self; 4] = [Self::Pasv, Self::Epsv, Self::Port, Self::Eprt];

    /// The command the client sends.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Pasv => "PASV",
            Self::Epsv => "EPSV",
            Self::Port => "PORT",
            Self::Eprt => "EPRT",
        }
    }

    /// True if the client opens the data connection.
    #[must_use]
    pub fn is_passive(self) -> bool {
        matches!(self, Self::Pasv | Self::Epsv)
    }

    /// True if it works over IPv4 only.
    #[must_use]
    pub fn is_v4_only(self) -> bool {
        matches!(self, Self::Pasv | Self::Port)
    }
}
