//! Bodies of connections.

use super::tuple::{self, Head};
use super::{Unencodable, read_extensions, read_name};
use crate::wire::{Reader, WireError, put_counted, put_varint};
use netfilter::flow::{Help, HelpInfo, Labels, SeqAdj, Synproxy};
use netfilter::protoinfo::{ProtoInfo, Tcp, TcpFlags};
use netfilter::{Flow, Status};

const TCP: u64 = 1;
const REPLY: u64 = 1 << 1;
const MARK: u64 = 1 << 2;
const HELP: u64 = 1 << 3;
const HELP_INFO: u64 = 1 << 4;
const SEQ_ADJ_ORIG: u64 = 1 << 5;
const SEQ_ADJ_REPLY: u64 = 1 << 6;
const LABELS: u64 = 1 << 7;
const MASTER: u64 = 1 << 8;
const SYNPROXY: u64 = 1 << 9;
const SCTP: u64 = 1 << 10;
const DCCP: u64 = 1 << 11;
const EXTENSIONS: u64 = 1 << 12;
const KNOWN: u64 = (EXTENSIONS << 1) - 1;

/// TCP flags that are worth anything elsewhere; the others change without an
/// event (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
const TCP_FLAGS: u8 = 0x0f;

pub(super) fn put(out: &mut Vec<u8>, flow: &Flow) -> Result<(), Unencodable> {
    tuple::put_key(out, false, &flow.orig, flow.zone)?;
    let inverse = flow.orig.inverse();
    let fields = fields(flow, flow.reply != inverse);
    put_varint(out, fields);
    put_varint(out, u64::from(flow.status.unwrap_or_default().bits()));
    put_protoinfo(out, &flow.protoinfo);
    if fields & REPLY != 0 {
        tuple::put_diff(out, &inverse, &flow.reply)?;
    }
    if let Some(mark) = flow.mark.filter(|m| *m != 0) {
        out.extend_from_slice(&mark.to_be_bytes());
    }
    if let Some(help) = &flow.help {
        put_counted(out, help.name.as_bytes());
        if fields & HELP_INFO != 0 {
            put_counted(out, help.info.as_bytes());
        }
    }
    for adj in [flow.seq_adj_orig, flow.seq_adj_reply]
        .into_iter()
        .flatten()
    {
        put_seq_adj(out, &adj);
    }
    if let Some(labels) = labels(flow) {
        out.extend_from_slice(&labels.0);
    }
    if let Some(master) = &flow.master {
        tuple::put(out, master)?;
    }
    if let Some(s) = synproxy(flow) {
        for v in [s.isn, s.its, s.tsoff] {
            out.extend_from_slice(&v.to_be_bytes());
        }
    }
    Ok(())
}

fn fields(flow: &Flow, nat: bool) -> u64 {
    let info = flow.help.is_some_and(|h| !h.info.as_bytes().is_empty());
    [
        (matches!(flow.protoinfo, ProtoInfo::Tcp(_)), TCP),
        (nat, REPLY),
        (flow.mark.is_some_and(|m| m != 0), MARK),
        (flow.help.is_some(), HELP),
        (info, HELP_INFO),
        (flow.seq_adj_orig.is_some(), SEQ_ADJ_ORIG),
        (flow.seq_adj_reply.is_some(), SEQ_ADJ_REPLY),
        (labels(flow).is_some(), LABELS),
        (flow.master.is_some(), MASTER),
        (synproxy(flow).is_some(), SYNPROXY),
        (matches!(flow.protoinfo, ProtoInfo::Sctp { .. }), SCTP),
        (matches!(flow.protoinfo, ProtoInfo::Dccp { .. }), DCCP),
    ]
    .iter()
    .fold(0, |f, (is, bit)| if *is { f | bit } else { f })
}

/// No label and no label extension mean the same.
fn labels(flow: &Flow) -> Option<Labels> {
    flow.labels.filter(|l| l.0 != [0; 16])
}

/// The kernel gives every injected connection a state of zeros.
fn synproxy(flow: &Flow) -> Option<Synproxy> {
    flow.synproxy.filter(|s| *s != Synproxy::default())
}

fn put_protoinfo(out: &mut Vec<u8>, info: &ProtoInfo) {
    match *info {
        ProtoInfo::None => {}
        ProtoInfo::Tcp(t) => out.extend_from_slice(&[
            t.state,
            (t.wscale_orig.min(15) << 4) | t.wscale_reply.min(15),
            ((t.flags_orig.flags & TCP_FLAGS) << 4) | (t.flags_reply.flags & TCP_FLAGS),
        ]),
        ProtoInfo::Sctp {
            state,
            vtag_orig,
            vtag_reply,
        } => {
            out.push(state);
            out.extend_from_slice(&vtag_orig.to_be_bytes());
            out.extend_from_slice(&vtag_reply.to_be_bytes());
        }
        ProtoInfo::Dccp {
            state,
            role,
            handshake_seq,
        } => {
            out.extend_from_slice(&[state, role]);
            out.extend_from_slice(&handshake_seq.to_be_bytes());
        }
    }
}

fn put_seq_adj(out: &mut Vec<u8>, adj: &SeqAdj) {
    out.extend_from_slice(&adj.correction_pos.to_be_bytes());
    for v in [adj.before, adj.after] {
        put_varint(out, u64::from(zigzag(v)));
    }
}

const fn zigzag(v: i32) -> u32 {
    u32::from_ne_bytes(((v << 1) ^ (v >> 31)).to_ne_bytes())
}

const fn unzigzag(v: u32) -> i32 {
    i32::from_ne_bytes(((v >> 1) ^ (v & 1).wrapping_neg()).to_ne_bytes())
}

pub(super) fn read(r: &mut Reader<'_>, head: &Head) -> Result<Flow, WireError> {
    let fields = r.varint("fields")?;
    if fields & !KNOWN != 0 {
        return Err(WireError::Value("fields"));
    }
    let has = |bit| fields & bit != 0;
    let inverse = head.tuple.inverse();
    let mut flow = Flow::new(head.tuple, inverse);
    flow.zone = head.zone;
    flow.status = Some(Status::from_bits_retain(r.int("status")?));
    flow.protoinfo = read_protoinfo(r, fields)?;
    if has(REPLY) {
        flow.reply = tuple::read_diff(r, &inverse)?;
    }
    if has(MARK) {
        flow.mark = Some(r.u32("mark")?).filter(|m| *m != 0);
        flow.mark.ok_or(WireError::Value("mark"))?;
    }
    flow.help = read_help(r, has(HELP), has(HELP_INFO))?;
    flow.seq_adj_orig = option(has(SEQ_ADJ_ORIG), || read_seq_adj(r))?;
    flow.seq_adj_reply = option(has(SEQ_ADJ_REPLY), || read_seq_adj(r))?;
    if has(LABELS) {
        flow.labels = Some(Labels(r.array("labels")?));
        labels(&flow).ok_or(WireError::Value("labels"))?;
    }
    flow.master = option(has(MASTER), || tuple::read(r))?;
    flow.synproxy = option(has(SYNPROXY), || {
        Ok(Synproxy {
            isn: r.u32("synproxy")?,
            its: r.u32("synproxy")?,
            tsoff: r.u32("synproxy")?,
        })
    })?;
    if has(SYNPROXY) {
        synproxy(&flow).ok_or(WireError::Value("synproxy"))?;
    }
    if has(EXTENSIONS) {
        read_extensions(r)?;
    }
    Ok(flow)
}

pub(super) const fn says_master(fields: u64) -> bool {
    fields & MASTER != 0
}

fn option<T>(
    present: bool,
    read: impl FnOnce() -> Result<T, WireError>,
) -> Result<Option<T>, WireError> {
    if present { read().map(Some) } else { Ok(None) }
}

fn read_protoinfo(r: &mut Reader<'_>, fields: u64) -> Result<ProtoInfo, WireError> {
    match fields & (TCP | SCTP | DCCP) {
        0 => Ok(ProtoInfo::None),
        TCP => {
            let [state, wscale, flags] = r.array("TCP state")?;
            let flags_of = |flags| TcpFlags { flags, mask: 0 };
            Ok(ProtoInfo::Tcp(Tcp {
                state,
                wscale_orig: wscale >> 4,
                wscale_reply: wscale & 0x0f,
                flags_orig: flags_of(flags >> 4),
                flags_reply: flags_of(flags & 0x0f),
            }))
        }
        SCTP => Ok(ProtoInfo::Sctp {
            state: r.u8("SCTP state")?,
            vtag_orig: r.u32("SCTP tag")?,
            vtag_reply: r.u32("SCTP tag")?,
        }),
        DCCP => {
            let [state, role] = r.array("DCCP state")?;
            Ok(ProtoInfo::Dccp {
                state,
                role,
                handshake_seq: r.u64("DCCP sequence")?,
            })
        }
        _ => Err(WireError::Value("fields")),
    }
}

fn read_help(r: &mut Reader<'_>, name: bool, info: bool) -> Result<Option<Help>, WireError> {
    const WHAT: WireError = WireError::Value("helper data");
    if !name {
        return if info { Err(WHAT) } else { Ok(None) };
    }
    let name = read_name(r, "helper")?;
    let mut help = Help {
        name,
        info: HelpInfo::default(),
    };
    if info {
        let bytes = r.counted("helper data")?;
        if bytes.is_empty() {
            return Err(WHAT);
        }
        help.info = HelpInfo::new(bytes).map_err(|_| WHAT)?;
    }
    Ok(Some(help))
}

fn read_seq_adj(r: &mut Reader<'_>) -> Result<SeqAdj, WireError> {
    Ok(SeqAdj {
        correction_pos: r.u32("sequence adjustment")?,
        before: unzigzag(r.int("sequence adjustment")?),
        after: unzigzag(r.int("sequence adjustment")?),
    })
}
