//! Requests on the control socket.

use super::Daemon;
use crate::record::Record;
use crate::render::{self, Select, Selector};
use crate::replica::message::Role;
use crate::replica::remaining;
use crate::store::Store;
use anyhow::Result;
use daemon::ClientId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Slots looked at per `show` request.
const PAGE: u32 = 4096;

/// What a client may ask for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Ask {
    /// How it goes.
    Status,
    /// Whether this node is in sync.
    Check,
    /// One page of a cache.
    Show(Page),
    /// Put peers' entries into the kernel.
    Commit {
        /// Only look whether it would work.
        #[serde(default)]
        dry_run: bool,
        /// Look into the kernel afterwards.
        #[serde(default)]
        verify: bool,
    },
    /// Own the states.
    Primary,
    /// Wait.
    Backup,
    /// Be out of order.
    Fault,
    /// Forget a cache.
    Flush {
        /// The peers' instead of our own.
        external: bool,
    },
    /// Compare with the kernel and with the peers.
    Resync,
    /// Tell what changes.
    Monitor,
}

/// A page of a cache.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Page {
    /// The peers' caches instead of our own.
    pub external: bool,
    /// Expectations instead of connections.
    pub expectations: bool,
    /// Objects instead of lines.
    pub json: bool,
    /// What is asked for.
    pub select: Select,
    /// Where to go on: peer and slot.
    pub from: (usize, u32),
}

impl Daemon {
    pub(super) fn on_control(&mut self) -> Result<()> {
        for (client, request) in self.server.poll()? {
            match serde_json::from_value(request) {
                Ok(ask) => self.on_ask(client, ask)?,
                Err(e) => self.reply(client, &json!({"error": format!("request: {e}")})),
            }
        }
        Ok(())
    }

    fn reply(&mut self, client: ClientId, answer: &Value) {
        self.server.send(client, answer);
        self.server.finish(client);
    }

    fn on_ask(&mut self, client: ClientId, ask: Ask) -> Result<()> {
        let now = self.now();
        match ask {
            Ask::Status => self.reply(client, &self.status(now)),
            Ask::Check => {
                let (ok, why) = self.check(now);
                self.reply(client, &json!({"ok": ok, "why": why}));
            }
            Ask::Show(page) => {
                let answer = self.page(page);
                self.server.send(client, &answer);
            }
            Ask::Commit {
                dry_run: false,
                verify,
            } => self.commit(client, false, verify),
            Ask::Commit { .. } => {
                let answer = self.preflight();
                self.reply(client, &answer);
            }
            Ask::Primary if self.replica.role().0 == Role::Primary => {
                let epoch = self.replica.role().1;
                self.reply(client, &json!({"ok": true, "result": {"role": "primary", "epoch": epoch, "already": true}}));
            }
            Ask::Primary => self.commit(client, true, false),
            Ask::Backup => self.on_step_down(client, Role::Backup),
            Ask::Fault => self.on_step_down(client, Role::Fault),
            Ask::Flush { external: false } => {
                // Peers learn of the difference, once it is known.
                self.ready = false;
                self.replica.hold(true);
                self.replica.clear(now);
                self.kernel.reconcile();
                self.reply(client, &json!({"ok": true}));
            }
            Ask::Flush { external: true } => {
                for peer in &mut self.replica.peers {
                    peer.inbound.forget(now);
                }
                self.reply(client, &json!({"ok": true}));
            }
            Ask::Resync => {
                self.kernel.reconcile();
                self.replica.resync();
                self.reply(client, &json!({"ok": true}));
            }
            Ask::Monitor => self.monitors.push(client),
        }
        Ok(())
    }

    fn on_step_down(&mut self, client: ClientId, role: Role) {
        let now = self.now();
        self.step_down(role, now);
        if role == Role::Backup {
            self.replica.resync();
        }
        let (role, epoch) = self.replica.role();
        let result = json!({"role": role.name(), "epoch": epoch});
        self.reply(client, &json!({"ok": true, "result": result}));
    }

    fn page(&self, page: Page) -> Value {
        let selector = match Selector::new(page.select.clone()) {
            Ok(s) => s,
            Err(e) => return json!({"error": e}),
        };
        let (mut peer, mut slot) = page.from;
        let mut entries = Vec::new();
        let mut looked = 0;
        while let Some(store) = self.cache(page.external, peer) {
            while (slot as usize) < store.slots() {
                if looked >= PAGE {
                    return json!({"entries": entries, "next": (peer, slot)});
                }
                looked += 1;
                entries.extend(self.entry(store, slot, &page, &selector));
                slot += 1;
            }
            (peer, slot) = (peer + 1, 0);
        }
        json!({"entries": entries, "next": null})
    }

    fn cache(&self, external: bool, peer: usize) -> Option<&Store> {
        if external {
            self.replica.peers.get(peer).map(|p| &p.inbound.store)
        } else {
            (peer == 0).then_some(&self.replica.own)
        }
    }

    fn entry(&self, store: &Store, slot: u32, page: &Page, selector: &Selector) -> Option<Value> {
        let slot = store.slot(slot).filter(|s| s.is_live())?;
        if slot.is_expect() != page.expectations {
            return None;
        }
        let record = super::job::decoded(store.bytes(slot))?;
        if !selector.matches(&record) {
            return None;
        }
        let timeout = Some(remaining(slot, self.now()));
        Some(if page.json {
            render::json(&record, timeout)
        } else {
            render::line(&record, timeout).into()
        })
    }

    /// What a commit would find.
    fn preflight(&self) -> Value {
        let mut flows = 0_u64;
        let mut expectations = 0_u64;
        let mut helpers = std::collections::BTreeMap::<String, u64>::new();
        for peer in &self.replica.peers {
            let copy = &peer.inbound.store;
            for (_, slot) in copy.live() {
                match super::job::decoded(copy.bytes(slot)) {
                    Some(Record::Flow(f)) => {
                        flows += 1;
                        if let Some(help) = f.help {
                            *helpers.entry(help.name.to_string()).or_default() += 1;
                        }
                    }
                    Some(Record::Expect(_)) => expectations += 1,
                    None => {}
                }
            }
        }
        let mut problems = crate::preflight::problems(&helpers);
        problems.extend(crate::preflight::room(flows));
        json!({"ok": problems.is_empty(), "result": {
            "dry_run": true,
            "flows": flows,
            "expectations": expectations,
            "helpers": helpers,
            "failed": {},
            "seconds": 0.0,
            "problems": problems,
        }})
    }
}
