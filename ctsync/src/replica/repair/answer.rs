//! The origin's side of a comparison: every query is answered on its own.

use super::{Part, slots};
use crate::replica::message::{
    self, Blocks, Groups, Keys, Message, OursBlock, Query, Segment, Segments,
};
use crate::replica::outbound::Outbound;
use crate::store::{BLOCK, GROUPS, Slot, Store};
use crate::wire::WireError;
use std::time::Duration;

/// Answers a query of a peer, which has bit `bit` in slots.
///
/// # Errors
/// [`WireError`] if it is malformed; what comes before is dealt with.
pub fn answer(
    own: &mut Store,
    outbound: &mut Outbound,
    bit: u16,
    message: Message<'_>,
    now: Duration,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    match message {
        Message::Groups(g) => on_groups(own, &g, out),
        Message::Blocks(query, blocks) => on_blocks(own, query, blocks, out)?,
        Message::Wanted(query, keys) => on_wanted(own, outbound, query, keys, now, out)?,
        Message::Ghosts(query, keys) => {
            on_ghosts(own, outbound, bit, keys, now)?;
            message::put_answer(out, query, &[]);
        }
        Message::List(query, segments) => {
            on_list(own, outbound, bit, segments, now)?;
            message::put_answer(out, query, &[]);
        }
        _ => {}
    }
    Ok(())
}

/// Answers a query of groups: which differ from our own.
fn on_groups(own: &Store, g: &Groups<'_>, out: &mut Vec<u8>) {
    let ours = own.digests().groups().iter().skip(usize::from(g.first));
    let mut bitmap = [0_u8; GROUPS / 8];
    let theirs = g.digests.chunks_exact(8);
    for (i, (theirs, ours)) in theirs.zip(ours).enumerate() {
        if ours.to_be_bytes() != theirs {
            set(&mut bitmap, i);
        }
    }
    message::put_answer(out, g.query, &bitmap);
}

fn set(bitmap: &mut [u8], i: usize) {
    if let Some(b) = bitmap.get_mut(i / 8) {
        *b |= 1 << (i % 8);
    }
}

/// Answers a query of blocks: what we have in leaves that differ. The answer
/// is not longer than the query.
fn on_blocks(
    own: &Store,
    query: Query,
    mut blocks: Blocks<'_>,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let mut room = blocks.len();
    message::put_ours(out, query);
    while let Some(block) = blocks.next()? {
        let leaves = own.digests().block(block.block);
        let ours = leaves.iter().map(|l| message::cut_of(l.digest, block.cut));
        let both = ours.zip(block.cuts()).enumerate();
        let differ: Vec<usize> = both
            .filter(|(_, (ours, theirs))| ours != theirs)
            .map(|(i, _)| i)
            .collect();
        // Room for the heads of those that follow.
        let heads = blocks.len() / message::Block::LEN * OursBlock::HEAD;
        let before = out.len();
        let left = room.saturating_sub(heads);
        message::put_ours_block(out, block.block, leaves, &differ, left);
        room = room.saturating_sub(out.len() - before);
    }
    Ok(())
}

/// Answers a query of identities: queues those that we have, tells which we
/// have not.
fn on_wanted(
    own: &mut Store,
    outbound: &mut Outbound,
    query: Query,
    mut keys: Keys<'_>,
    now: Duration,
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    outbound.repair();
    let mut missing = Vec::new();
    let mut at = 0;
    while let Some(key) = keys.next()? {
        if at % 8 == 0 {
            missing.push(0);
        }
        let live = |i: &u32| own.slot(*i).is_some_and(Slot::is_live);
        match own.find(key).filter(live) {
            Some(index) => outbound.enqueue(own, index, now),
            None => set(&mut missing, at),
        }
        at += 1;
    }
    message::put_answer(out, query, &missing);
    Ok(())
}

/// Answers a query of identities: queues deletions of those that we have not.
fn on_ghosts(
    own: &mut Store,
    outbound: &mut Outbound,
    bit: u16,
    mut keys: Keys<'_>,
    now: Duration,
) -> Result<(), WireError> {
    outbound.repair();
    while let Some(key) = keys.next()? {
        if !bury_at_peer(own, outbound, bit, key, now) {
            break;
        }
    }
    Ok(())
}

/// Answers a list: queues what the receiver lacks or has otherwise, and
/// deletions of what does not exist.
fn on_list(
    own: &mut Store,
    outbound: &mut Outbound,
    bit: u16,
    mut segments: Segments<'_>,
    now: Duration,
) -> Result<(), WireError> {
    outbound.repair();
    while let Some(segment) = segments.next()? {
        compare(own, outbound, bit, &segment, now);
    }
    Ok(())
}

fn compare(own: &mut Store, outbound: &mut Outbound, bit: u16, s: &Segment<'_>, now: Duration) {
    let mut theirs: Vec<(u64, u32)> = s.entries().collect();
    theirs.sort_unstable();
    let part = Part {
        leaf: s.leaf,
        from: s.from,
        to: s.to,
    };
    let known = |slot: &Slot| theirs.binary_search(&(slot.key, slot.body)).is_ok();
    let lacking: Vec<u32> = slots(own, part)
        .filter(|(_, slot)| !known(slot))
        .map(|(index, _)| index)
        .collect();
    for index in lacking {
        outbound.enqueue(own, index, now);
    }
    for (key, _) in theirs {
        if !bury_at_peer(own, outbound, bit, key, now) {
            return;
        }
    }
}

/// Queues a deletion of what the peer has and we have not; false if there is
/// no room for more tombstones.
fn bury_at_peer(
    own: &mut Store,
    outbound: &mut Outbound,
    bit: u16,
    key: u64,
    now: Duration,
) -> bool {
    let index = match own.find(key) {
        Some(index) if own.slot(index).is_some_and(Slot::is_live) => return true,
        Some(index) => index,
        None => match own.plant(key) {
            Ok(index) => index,
            Err(_) => return false,
        },
    };
    if let Some(slot) = own.slot_mut(index) {
        slot.pending |= bit;
    }
    outbound.enqueue(own, index, now);
    true
}

const _: () = assert!(BLOCK % 8 == 0);
