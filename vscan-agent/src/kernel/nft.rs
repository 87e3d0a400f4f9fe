//! The table `inet vscan` in the kernel: applied by `nft`, kept alive and read over netlink.

use std::{io, net::IpAddr, time::Duration};

use caps::{CapSet, Capability};
use nftables::{helper, schema::Nftables};
use serde::{Deserialize, Serialize};

use super::{
    netlink::{Attributes, Family, Message, Socket},
    ruleset::{self, COUNTERS, Plan},
};

/// What went wrong with nftables.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// `nft` is not installed or cannot be run.
    #[error("nft cannot be run ({0}): install the package nftables")]
    Absent(io::Error),
    /// `nft` refused.
    #[error("nft: {0}")]
    Refused(String),
    /// The kernel refused.
    #[error("nftables: {0}")]
    Kernel(#[from] io::Error),
}

/// What the rules counted, in packets; connections for all but `reset`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// New connections handed to the gateway.
    pub steered: u64,
    /// Connections that passed uninspected: exempt networks.
    pub exempt: u64,
    /// Connections that passed uninspected: the agent was down or hung.
    pub down_passed: u64,
    /// Connections refused: the agent was down or hung.
    pub down_refused: u64,
    /// Connections dropped: denied networks, not counting those that BPF dropped.
    pub denied: u64,
    /// Connections dropped over the rate limit, not counting those that BPF dropped.
    pub limited: u64,
    /// Packets of connections that were reset on request.
    pub reset: u64,
}

/// Puts the rules in place, in one transaction.
pub(super) fn install(plan: Plan<'_>, anew: bool) -> Result<(), NftError> {
    apply(&ruleset::install(plan, anew))
}

/// Removes the table; gives whether there was one.
pub(super) fn remove() -> Result<bool, NftError> {
    if !exists()? {
        return Ok(false);
    }
    apply(&ruleset::remove())?;
    Ok(true)
}

/// The whole ruleset of this network namespace, as nft's JSON.
pub(super) fn list() -> Result<serde_json::Value, NftError> {
    let text =
        as_admin(|| helper::get_current_ruleset_raw(helper::DEFAULT_NFT, ["list", "ruleset"]))
            .map_err(refused)?;
    serde_json::from_str(&text).map_err(|e| NftError::Refused(e.to_string()))
}

fn apply(ruleset: &Nftables<'_>) -> Result<(), NftError> {
    as_admin(|| helper::apply_ruleset(ruleset)).map_err(refused)
}

fn refused(error: helper::NftablesError) -> NftError {
    match error {
        helper::NftablesError::NftExecution { inner, .. } => NftError::Absent(inner),
        helper::NftablesError::NftFailed { stderr, .. } => {
            // the first message says it; the rest quotes the JSON
            let line = stderr
                .lines()
                .find(|l| !l.trim().is_empty())
                .unwrap_or("the rules were refused; nft said why on standard output");
            NftError::Refused(line.trim().chars().take(300).collect())
        }
        helper::NftablesError::NftOutputEncoding { inner, .. } => {
            NftError::Refused(inner.to_string())
        }
        helper::NftablesError::NftInvalidJson(inner) => NftError::Refused(inner.to_string()),
    }
}

/// Runs something that starts `nft`, which needs CAP_NET_ADMIN: handed on as an ambient capability (capabilities(7)) by a
/// thread that lives only for this, so that nothing else inherits it.
fn as_admin<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            for set in [CapSet::Inheritable, CapSet::Ambient] {
                // refused to who has not got it: then nft says what it lacks
                let _ = caps::raise(None, set, Capability::CAP_NET_ADMIN);
            }
            run()
        });
        match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// `NFNL_SUBSYS_NFTABLES`, in the high byte of a message type.
const NFTABLES: u16 = 10;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_NEWSETELEM: u16 = 12;
const NFT_MSG_DELSETELEM: u16 = 14;
const NFT_MSG_NEWOBJ: u16 = 18;
const NFT_MSG_GETOBJ: u16 = 19;
/// `NFNL_MSG_BATCH_BEGIN`
const BATCH_BEGIN: u16 = 16;
/// `NFNL_MSG_BATCH_END`
const BATCH_END: u16 = 17;
const NFPROTO_INET: u8 = 1;
/// `struct nfgenmsg`
const FIXED: usize = 4;
const IPPROTO_TCP: u8 = 6;

const fn message(kind: u16) -> u16 {
    NFTABLES << 8 | kind
}

/// Family, version 0, no resource.
const INET: [u8; FIXED] = [NFPROTO_INET, 0, 0, 0];

/// Whether the table is there.
pub(super) fn exists() -> Result<bool, NftError> {
    const NFTA_TABLE_NAME: u16 = 1;
    let mut socket = Socket::open(Family::Netfilter, 0)?;
    // the answer to a request for one table is the table, or ENOENT; the dump is one message a table
    let tables = match socket.dump(Message::new(message(NFT_MSG_GETTABLE), 0, &INET)) {
        Ok(tables) => tables,
        // no nftables in this kernel, or not loaded yet
        Err(e) if [Some(libc::EINVAL), Some(libc::EOPNOTSUPP)].contains(&e.raw_os_error()) => {
            return Ok(false);
        }
        Err(e) => return Err(e.into()),
    };
    Ok(tables.iter().any(|table| {
        table.payload.first() == Some(&NFPROTO_INET)
            && table.attributes(FIXED).find(NFTA_TABLE_NAME) == Some(b"vscan\0")
    }))
}

/// The heartbeat as nftables sees it: an element that goes away by itself.
#[derive(Debug)]
pub(super) struct Beat {
    socket: Socket,
}

impl Beat {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { socket: Socket::open(Family::Netfilter, 0)? })
    }

    /// Alive for so long from now.
    ///
    /// One transaction: add, delete, add, since adding an element that is there does not renew its time.
    pub(super) fn beat(&mut self, ttl: Duration) -> io::Result<()> {
        self.batch(vec![
            alive(NFT_MSG_NEWSETELEM, ttl),
            alive(NFT_MSG_DELSETELEM, ttl),
            alive(NFT_MSG_NEWSETELEM, ttl),
        ])
    }

    /// Not alive.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        let ttl = Duration::from_secs(1);
        self.batch(vec![alive(NFT_MSG_NEWSETELEM, ttl), alive(NFT_MSG_DELSETELEM, ttl)])
    }

    /// New SMTP connections of the host are refused from now on for so long, or no longer.
    pub(super) fn cut(&mut self, host: IpAddr, time: Option<Duration>) -> io::Result<()> {
        let (set, key) = match host.to_canonical() {
            IpAddr::V4(v4) => (ruleset::CUT[0], v4.octets().to_vec()),
            IpAddr::V6(v6) => (ruleset::CUT[1], v6.octets().to_vec()),
        };
        let change = |kind| element(kind, set, &key, time.unwrap_or(Duration::from_secs(1)));
        // added first, so that there is one to be removed
        let mut elements = vec![change(NFT_MSG_NEWSETELEM), change(NFT_MSG_DELSETELEM)];
        if time.is_some() {
            elements.push(change(NFT_MSG_NEWSETELEM));
        }
        self.batch(elements)
    }

    fn batch(&mut self, elements: Vec<Message>) -> io::Result<()> {
        // struct nfgenmsg with the subsystem as resource, in network order
        let fixed = [0, 0, 0, NFTABLES as u8];
        let last = elements.len();
        let mut messages = vec![Message::new(BATCH_BEGIN, 0, &fixed)];
        messages.extend(elements);
        messages.push(Message::new(BATCH_END, 0, &fixed));
        self.socket.batch(messages, last)
    }
}

fn alive(kind: u16, ttl: Duration) -> Message {
    element(kind, ruleset::ALIVE, &[IPPROTO_TCP], ttl)
}

fn element(kind: u16, set: &str, key: &[u8], ttl: Duration) -> Message {
    const TABLE: u16 = 1;
    const SET: u16 = 2;
    const ELEMENTS: u16 = 3;
    const LIST_ELEM: u16 = 1;
    const KEY: u16 = 1;
    const TIMEOUT: u16 = 4;
    const DATA_VALUE: u16 = 1;
    let milliseconds = (ttl.as_millis() as u64).to_be_bytes();
    let flags = if kind == NFT_MSG_NEWSETELEM { libc::NLM_F_CREATE } else { 0 };
    Message::new(message(kind), flags, &INET).string(TABLE, ruleset::TABLE).string(SET, set).nested(
        ELEMENTS,
        |m| {
            m.nested(LIST_ELEM, |m| {
                let m = m.nested(KEY, |m| m.attribute(DATA_VALUE, key));
                if kind == NFT_MSG_NEWSETELEM { m.attribute(TIMEOUT, &milliseconds) } else { m }
            })
        },
    )
}

/// Reads the counters.
pub(super) fn counts() -> io::Result<Counts> {
    const OBJ_TABLE: u16 = 1;
    const OBJ_NAME: u16 = 2;
    const OBJ_TYPE: u16 = 3;
    const OBJ_DATA: u16 = 4;
    /// `NFT_OBJECT_COUNTER`
    const COUNTER: u32 = 1;
    const COUNTER_PACKETS: u16 = 2;
    let mut socket = Socket::open(Family::Netfilter, 0)?;
    let request = Message::new(message(NFT_MSG_GETOBJ), 0, &INET)
        .string(OBJ_TABLE, ruleset::TABLE)
        .attribute(OBJ_TYPE, &COUNTER.to_be_bytes());
    let mut values = [0; COUNTERS.len()];
    for object in socket.dump(request)? {
        let attributes = object.attributes(FIXED);
        if object.kind != message(NFT_MSG_NEWOBJ) || attributes.find(OBJ_TABLE) != Some(b"vscan\0")
        {
            continue;
        }
        let Some(name) = attributes.find(OBJ_NAME) else { continue };
        let packets = attributes
            .find(OBJ_DATA)
            .and_then(|data| Attributes(data).find(COUNTER_PACKETS))
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_be_bytes);
        for (value, counter) in values.iter_mut().zip(COUNTERS) {
            if name.strip_suffix(&[0]) == Some(counter.as_bytes()) {
                *value = packets;
            }
        }
    }
    let [steered, exempt, down_passed, down_refused, denied, limited, reset] = values;
    Ok(Counts { steered, exempt, down_passed, down_refused, denied, limited, reset })
}
