//! How many expectations are live, overall and per client, and whether more
//! are allowed. Pure: who tells it what the kernel did is [`crate::census`].

use crate::core::OpenError;
use netfilter::Tuple;
use netfilter::expect::Expectation;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

/// How many expectations may be live; 0: any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Of one [`Client`].
    pub client: u32,
    /// Of all.
    pub total: u32,
}

/// Whom an expectation counts for: the source of its control connection. An
/// IPv6 host has a whole /64 to choose from, so that counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

impl From<IpAddr> for Client {
    fn from(addr: IpAddr) -> Self {
        Self(match addr {
            IpAddr::V4(_) => addr,
            IpAddr::V6(a) => Ipv6Addr::from_bits(a.to_bits() & u128::MAX << 64).into(),
        })
    }
}

/// One kernel expectation: its master, what it expects, and which port that is
/// translated to. Without zones: the kernel leaves them out of expectation
/// events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    master: Tuple,
    tuple: Tuple,
    saved_port: Option<u16>,
}

impl Key {
    /// The key of an expectation whose master's original tuple is known.
    pub fn of(expectation: &Expectation) -> Self {
        let unzoned = |tuple: Tuple| Tuple {
            zone: None,
            ..tuple
        };
        Self {
            master: unzoned(expectation.master),
            tuple: unzoned(expectation.tuple),
            saved_port: expectation.nat.map(|nat| nat.port),
        }
    }

    fn client(&self) -> Client {
        self.master.src.into()
    }
}

/// The live expectations.
#[derive(Debug)]
pub struct Ledger {
    /// What is allowed.
    pub limits: Limits,
    /// When each ends, at the latest.
    live: HashMap<Key, Instant>,
    clients: HashMap<Client, u32>,
}

impl Ledger {
    /// Nothing is live.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            live: HashMap::new(),
            clients: HashMap::new(),
        }
    }

    /// Adds `keys`, all of one client, or none of them; those that are there
    /// already count once. Returns which of the first 64 are new, as bits.
    ///
    /// # Errors
    /// [`OpenError::ClientLimit`] or [`OpenError::TotalLimit`].
    pub fn admit(
        &mut self,
        keys: impl Iterator<Item = Key> + Clone,
        ends: Instant,
    ) -> Result<u64, OpenError> {
        let mut more = keys.clone().filter(|key| !self.live.contains_key(key));
        let Some(first) = more.next() else {
            self.note(keys, ends);
            return Ok(0);
        };
        let more = 1 + more.count();
        let held = self.clients.get(&first.client()).copied().unwrap_or(0);
        if exceeds(usize::try_from(held).unwrap_or(0), more, self.limits.client) {
            return Err(OpenError::ClientLimit);
        }
        if exceeds(self.live.len(), more, self.limits.total) {
            return Err(OpenError::TotalLimit);
        }
        Ok(self.note(keys, ends))
    }

    /// Adds what the kernel has, whatever the limits say. Returns which of the
    /// first 64 are new, as bits.
    pub fn note(&mut self, keys: impl Iterator<Item = Key>, ends: Instant) -> u64 {
        let mut new = 0;
        for (i, key) in keys.enumerate() {
            match self.live.entry(key) {
                Entry::Occupied(mut entry) => *entry.get_mut() = ends,
                Entry::Vacant(entry) => {
                    entry.insert(ends);
                    *self.clients.entry(key.client()).or_default() += 1;
                    new |= 1u64
                        .checked_shl(u32::try_from(i).unwrap_or(64))
                        .unwrap_or(0);
                }
            }
        }
        new
    }

    /// Takes an expectation out.
    pub fn remove(&mut self, key: &Key) {
        if self.live.remove(key).is_some() {
            let client = key.client();
            if let Some(held) = self.clients.get_mut(&client) {
                *held -= 1;
                if *held == 0 {
                    self.clients.remove(&client);
                }
            }
        }
    }

    /// Takes out those whose time is up.
    pub fn expire(&mut self, now: Instant) {
        let clients = &mut self.clients;
        self.live.retain(|key, ends| {
            let alive = *ends > now;
            if alive {
                return true;
            }
            if let Some(held) = clients.get_mut(&key.client()) {
                *held -= 1;
            }
            false
        });
        self.clients.retain(|_, held| *held > 0);
    }

    /// Forgets everything but the limits.
    pub fn clear(&mut self) {
        self.live.clear();
        self.clients.clear();
    }

    /// Live expectations, and clients that have any.
    pub fn size(&self) -> (usize, usize) {
        (self.live.len(), self.clients.len())
    }
}

fn exceeds(held: usize, more: usize, limit: u32) -> bool {
    limit > 0 && held + more > usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netfilter::expect::Mask;
    use std::time::Duration;

    fn key(client: &str, port: u16) -> Key {
        let (client, server) = (client.parse().unwrap(), "10.9.9.9".parse().unwrap());
        let master = Tuple::tcp(client, 40001, server, 21);
        let tuple = Tuple::tcp(server, 0, client, port);
        Key::of(&Expectation::new(master, tuple, Mask::any_sport(client)))
    }

    fn ledger(client: u32, total: u32) -> (Ledger, Instant) {
        let ledger = Ledger::new(Limits { client, total });
        (ledger, Instant::now() + Duration::from_secs(300))
    }

    fn block(client: &str, first: u16, count: u16) -> impl Iterator<Item = Key> + Clone {
        let client = client.to_owned();
        (first..first + count).map(move |port| key(&client, port))
    }

    #[test]
    fn a_client_at_its_limit_leaves_room_for_others() {
        let (mut l, ends) = ledger(8, 12);
        assert_eq!(l.admit(block("10.0.0.1", 4000, 4), ends), Ok(0b1111));
        assert_eq!(l.admit(block("10.0.0.1", 4004, 4), ends), Ok(0b1111));
        let more = l.admit(block("10.0.0.1", 4008, 1), ends);
        assert_eq!(more, Err(OpenError::ClientLimit));
        assert_eq!(l.admit(block("10.0.0.2", 4000, 4), ends), Ok(0b1111));
        let more = l.admit(block("10.0.0.3", 4000, 1), ends);
        assert_eq!(more, Err(OpenError::TotalLimit));
        assert_eq!(l.size(), (12, 2));
    }

    #[test]
    fn a_block_is_admitted_whole_or_not_at_all_and_counts_once() {
        let (mut l, ends) = ledger(6, 0);
        assert_eq!(l.admit(block("10.0.0.1", 4000, 4), ends), Ok(0b1111));
        assert!(l.admit(block("10.0.0.1", 4008, 4), ends).is_err());
        assert_eq!(l.size(), (4, 1));
        assert_eq!(l.admit(block("10.0.0.1", 4002, 4), ends), Ok(0b1100));
        assert_eq!(l.admit(block("10.0.0.1", 4000, 6), ends), Ok(0));
        assert_eq!(l.size(), (6, 1));
    }

    #[test]
    fn what_is_gone_makes_room() {
        let (mut l, ends) = ledger(1, 0);
        assert!(l.admit(block("10.0.0.1", 4000, 1), ends).is_ok());
        l.remove(&key("10.0.0.1", 4001));
        assert!(l.admit(block("10.0.0.1", 4001, 1), ends).is_err());
        l.remove(&key("10.0.0.1", 4000));
        assert_eq!(l.size(), (0, 0));
        assert!(l.admit(block("10.0.0.1", 4001, 1), ends).is_ok());
        l.expire(ends);
        assert_eq!(l.size(), (0, 0));
    }

    #[test]
    fn an_ipv6_network_counts_as_one_client() {
        let client = |a: &str| Client::from(a.parse::<IpAddr>().unwrap());
        assert_eq!(client("fd00::1:2:3:4"), client("fd00::5:6:7:8"));
        assert_ne!(client("fd00::1"), client("fd00:0:0:1::1"));
        assert_ne!(client("10.0.0.1"), client("10.0.0.2"));
    }

    #[test]
    fn without_limits_everything_is_counted_and_admitted() {
        let (mut l, ends) = ledger(0, 0);
        for port in 1..=1000 {
            assert_eq!(l.admit(block("10.0.0.1", port, 1), ends), Ok(1));
        }
        assert_eq!(l.size(), (1000, 1));
    }
}
