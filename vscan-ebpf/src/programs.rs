//! Maps, helpers and the two entry points.

use aya_ebpf::{
    bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT},
    helpers::bpf_ktime_get_ns,
    macros::{classifier, map},
    maps::{Array, LpmTrie, LruHashMap, PerCpuArray, RingBuf, lpm_trie::Key},
    programs::TcContext,
};
use aya_log_ebpf::{info, warn};
use vscan_common::{Address, Counter, Event, Flow, FlowKey, Settings, event, flow};
use vscan_ebpf::{
    account,
    decide::{self, Action},
    parse::{self, Found, Packet, Plain, Segment, Start},
};

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);
/// As many networks as a configuration sensibly has.
#[map]
static NETS: LpmTrie<Address, u32> = LpmTrie::with_max_entries(65536, BPF_F_NO_PREALLOC);
/// Directions that are remembered: two a connection, about 5 MB.
#[map]
static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(32768, 0);
#[map]
static KILL: LruHashMap<FlowKey, u8> = LruHashMap::with_max_entries(4096, 0);
#[map]
static RATE: LruHashMap<Address, u64> = LruHashMap::with_max_entries(16384, 0);
/// 4096 events of 64 bytes.
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(4096 * 64, 0);
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

/// The packet goes on, to the next program or to the stack: TCX_NEXT and TC_ACT_UNSPEC are the same.
const NEXT: i32 = -1;
/// The packet is dropped: TCX_DROP and TC_ACT_SHOT are the same.
const DROP: i32 = TC_ACT_SHOT as i32;
/// How much of a packet is made readable when its headers lie outside the linear part: Ethernet, two tags, IPv6 and
/// some extension headers, TCP.
const PULL: u32 = 192;

/// For devices whose packets begin with an Ethernet header.
#[classifier]
fn vscan_l2(ctx: TcContext) -> i32 {
    run(&ctx, Start::Ethernet)
}

/// For devices whose packets begin with the IP header.
#[classifier]
fn vscan_l3(ctx: TcContext) -> i32 {
    run(&ctx, Start::Ip)
}

/// The linear part of a packet, read in place.
struct Linear<'a>(&'a TcContext);

impl Packet for Linear<'_> {
    #[inline(always)]
    fn load<T: Plain>(&self, at: usize) -> Option<T> {
        let start = self.0.data() + at;
        if start + size_of::<T>() > self.0.data_end() {
            return None;
        }
        // SAFETY: within the packet by the check above, which the verifier follows; any bytes are a T. IP headers are
        // aligned to 4 where the architecture needs it (NET_IP_ALIGN), and the verifier refuses the program elsewhere.
        Some(unsafe { *(start as *const T) })
    }
}

#[inline(always)]
fn run(ctx: &TcContext, start: Start) -> i32 {
    let Some(settings) = SETTINGS.get(0) else {
        return NEXT;
    };
    let mark = mark_of(ctx);
    if mark & settings.mask != 0 {
        ctx.set_mark(mark & !settings.mask);
    }
    match look(ctx, start, settings) {
        Ok(verdict) => verdict,
        Err(Cut) => {
            // the headers may lie in fragments of the skb: once more with them pulled into the linear part
            let linear = (ctx.data_end() - ctx.data()) as u32;
            if linear < ctx.len() && linear < PULL {
                let wanted = if ctx.len() < PULL { ctx.len() } else { PULL };
                if ctx.pull_data(wanted).is_ok()
                    && let Ok(verdict) = look(ctx, start, settings)
                {
                    return verdict;
                }
            }
            count(Counter::Unreadable, 1);
            NEXT
        }
    }
}

/// The packet's linear part ends before its headers do.
struct Cut;

#[inline(always)]
fn look(ctx: &TcContext, start: Start, settings: &Settings) -> Result<i32, Cut> {
    let packet = Linear(ctx);
    let (v6, ip, tcp) = match parse::find(&packet, start) {
        Found::Tcp { v6, ip, tcp } => (v6, ip, tcp),
        Found::Other => return Ok(NEXT),
        Found::Fragment => {
            count(Counter::Fragments, 1);
            return Ok(NEXT);
        }
        Found::Short => return Err(Cut),
        Found::Deep => {
            count(Counter::Unreadable, 1);
            return Ok(NEXT);
        }
    };
    let ports = parse::ports(&packet, tcp).ok_or(Cut)?;
    let (from_ours, to_ours) = (settings.is_ours(ports.0), settings.is_ours(ports.1));
    if !from_ours && !to_ours {
        return Ok(NEXT);
    }
    let segment = parse::segment(&packet, v6, ip, tcp, ports).ok_or(Cut)?;
    Ok(ours(ctx, settings, &segment, to_ours))
}

/// A segment from or to one of our ports. Out of line: the way of all other packets stays short.
#[inline(never)]
fn ours(ctx: &TcContext, settings: &Settings, segment: &Segment, to_ours: bool) -> i32 {
    // SAFETY: no arguments, always permitted.
    let now = unsafe { bpf_ktime_get_ns() };
    // a packet that generic receive offload put together counts as what came over the wire
    let packets = u64::from(segments(ctx).max(1));
    let bytes = u64::from(ctx.len());
    if count(Counter::Packets, packets) == 0 {
        info!(ctx, "first packet from or to our ports on this CPU, on interface {}", ifindex(ctx));
    }
    count(Counter::Bytes, bytes);

    // looked up, not read: whoever is in the map is to be reset
    // SAFETY: the value is not read.
    if unsafe { KILL.get(&segment.key) }.is_some() {
        count(Counter::Killed, packets);
        account(ctx, segment, packets, bytes, now, flow::KILLED);
        add_mark(ctx, settings, settings.reset);
        return NEXT;
    }
    let mut added = 0;
    if segment.opens() && to_ours {
        count(Counter::Syns, 1);
        match decide_syn(settings, segment, now) {
            Action::Steer => {}
            Action::Deny => {
                if count(Counter::Denied, 1) == 0 {
                    warn!(
                        ctx,
                        "first connection from a denied network on this CPU, to port {}",
                        segment.key.dport
                    );
                }
                report(event::DENIED, segment);
                return DROP;
            }
            Action::Limit => {
                if count(Counter::Limited, 1) == 0 {
                    warn!(
                        ctx,
                        "first connection over the rate limit on this CPU, to port {}",
                        segment.key.dport
                    );
                }
                report(event::LIMITED, segment);
                return DROP;
            }
            Action::Exempt => {
                count(Counter::Exempt, 1);
                add_mark(ctx, settings, settings.bypass);
                added = flow::EXEMPT;
                report(event::EXEMPT, segment);
            }
            Action::Down => {
                if count(Counter::Down, 1) == 0 {
                    warn!(
                        ctx,
                        "first connection without an agent on this CPU, to port {}",
                        segment.key.dport
                    );
                }
                add_mark(ctx, settings, settings.down);
                added = flow::DOWN;
                report(event::DOWN, segment);
            }
        }
    }
    account(ctx, segment, packets, bytes, now, added);
    NEXT
}

#[inline(always)]
fn decide_syn(settings: &Settings, segment: &Segment, now: u64) -> Action {
    let beat = match HEARTBEAT.get_ptr(0) {
        // SAFETY: the element exists for as long as the map; a torn read cannot happen with 8 aligned bytes.
        Some(beat) => unsafe { beat.read_volatile() },
        None => 0,
    };
    let stale = decide::is_stale(now, beat, settings.ttl_ns);
    let limited = settings.rate_ns != 0 && is_limited(settings, &segment.key.src, now);
    decide::on_syn(networks(segment.key.src), networks(segment.key.dst), limited, stale)
}

#[inline(always)]
fn networks(address: Address) -> u32 {
    NETS.get(Key::new(128, address)).copied().unwrap_or(0)
}

#[inline(always)]
fn is_limited(settings: &Settings, client: &Address, now: u64) -> bool {
    let known = RATE.get_ptr_mut(client);
    let arrival = match known {
        // SAFETY: LRU elements stay readable during a run; another CPU may change the number, which only blurs the limit.
        Some(arrival) => unsafe { *arrival },
        None => 0,
    };
    let Some(next) = decide::admit(arrival, now, settings.rate_ns, settings.burst_ns) else {
        return true;
    };
    match known {
        // SAFETY: as above.
        Some(arrival) => unsafe { *arrival = next },
        None => {
            // a full map makes room; a lost insert is a connection not counted
            let _ = RATE.insert(client, next, 0);
        }
    }
    false
}

/// Adds the segment to what is known of its direction.
#[inline(always)]
fn account(ctx: &TcContext, segment: &Segment, packets: u64, bytes: u64, now: u64, added: u32) {
    if let Some(known) = FLOWS.get_ptr_mut(&segment.key) {
        // SAFETY: LRU elements stay valid memory during a run. A direction of a flow comes in on one CPU; when the kernel
        // moves it to another in mid-flow, at worst a packet is not counted (the target has no atomic addition in core).
        let known = unsafe { &mut *known };
        if !account::begins_anew(segment, known) {
            known.packets += packets;
            known.bytes += bytes;
            known.last_ns = now;
            let flags = account::flags(segment);
            let before = known.flags;
            if before | flags | added != before {
                known.flags = before | flags | added;
            }
            return;
        }
    }
    let mut flow = account::first(segment, packets, bytes, now, ifindex(ctx));
    flow.flags |= added;
    // fails only when every element is in use on other CPUs: then the flow is not shown
    let _ = FLOWS.insert(&segment.key, flow, 0);
}

/// Tells the agent.
#[inline(always)]
fn report(kind: u32, segment: &Segment) {
    match EVENTS.reserve::<Event>(0) {
        Some(mut entry) => {
            entry.write(Event { key: segment.key, kind });
            entry.submit(0);
        }
        None => {
            count(Counter::EventsLost, 1);
        }
    }
}

/// Adds to a counter; gives its value before, on this CPU.
#[inline(always)]
fn count(counter: Counter, n: u64) -> u64 {
    match COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: this CPU's own element, and tc programs of one CPU do not interrupt each other.
        Some(value) => unsafe {
            let before = *value;
            *value = before + n;
            before
        },
        None => 0,
    }
}

#[inline(always)]
fn add_mark(ctx: &TcContext, settings: &Settings, value: u32) {
    ctx.set_mark((mark_of(ctx) & !settings.mask) | value);
}

#[inline(always)]
fn mark_of(ctx: &TcContext) -> u32 {
    // SAFETY: the context is valid for the run; the verifier turns the access into one of the real skb.
    unsafe { (*ctx.skb.skb).mark }
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as for the mark.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn segments(ctx: &TcContext) -> u32 {
    // SAFETY: as for the mark.
    unsafe { (*ctx.skb.skb).gso_segs }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the kernel wants to know before it lets the programs call helpers that are GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
