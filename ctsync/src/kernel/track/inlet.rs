//! What changes in a peer's copy, collected while a message is taken.

use super::{Note, kind};
use crate::replica::Sink;
use crate::store::{Change as Stored, Flags, Store};
use netfilter::conntrack::Change;

/// Collects what changes in a copy: to write it into the kernel, and for
/// those who watch.
#[derive(Debug, Default)]
pub struct Inlet {
    /// Slots to install.
    pub put: Vec<u32>,
    /// Slots that are installed, and of which only the timeout has changed.
    pub later: Vec<u32>,
    /// Records to delete from the kernel, and when they would have timed out
    /// there, see [`crate::store::Slot::deadline`].
    pub delete: Vec<(Vec<u8>, u32)>,
    /// Changes, if anybody watches.
    pub journal: Option<Vec<Note>>,
}

impl Sink for Inlet {
    fn put(&mut self, copy: &mut Store, index: u32, change: Stored) {
        if change == Stored::Same {
            let installed = |s: &crate::store::Slot| s.flags.contains(Flags::INSTALLED);
            if copy.slot(index).is_some_and(installed) {
                self.later.push(index);
            }
            return;
        }
        self.put.push(index);
        self.note(copy, index, kind(change));
    }

    fn delete(&mut self, copy: &mut Store, index: u32) {
        self.note(copy, index, Change::Destroy);
        if let Some(slot) = copy.slot(index) {
            if slot.flags.contains(Flags::INSTALLED) {
                let bytes = copy.bytes(slot).to_vec();
                self.delete.push((bytes, slot.deadline));
            }
        }
    }
}

impl Inlet {
    fn note(&mut self, copy: &Store, index: u32, change: Change) {
        if let (Some(journal), Some(slot)) = (&mut self.journal, copy.slot(index)) {
            journal.push(Note {
                change,
                external: true,
                record: copy.bytes(slot).to_vec(),
            });
        }
    }
}
