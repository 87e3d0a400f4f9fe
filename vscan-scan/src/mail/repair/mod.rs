//! Repairs: which portion of a message holds a part, what can be done with it, and by which edits.
//!
//! The object is walked again without an engine. For each ordered part the innermost portion around it is
//! looked for on which all readers agree, in a chain of messages that can be encoded again; where there is none
//! nothing is guessed. What does not belong to such a portion keeps its bytes. The edits of the header are
//! in `fields`, the texts that take a portion's place in `text`, repairs of documents and archives in
//! [`crate::clean`].

mod fields;
mod text;

use super::encoding::{self, decode};
use super::headers::Encoding;
use super::{Portion, uu};
use crate::clean;
use crate::limits::Limits;
use crate::object::{self, Node, Object, Origin, Trace};
use crate::repair::{Answer, Done, Edit, Order, Plan, Remedy, Repaired};
use crate::sniff::Kind;
use crate::wire::ObjectKind;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Why something cannot be done, in words.
type Why = String;

/// See [`crate::object::repair`].
pub(crate) fn repair(limits: &Limits, object: &Object<'_>, plan: &Plan) -> Answer {
    match attempt(limits, object, plan) {
        Ok(repaired) => Answer::Repaired(repaired),
        Err(why) => Answer::Unrepairable { why },
    }
}

fn attempt(limits: &Limits, object: &Object<'_>, plan: &Plan) -> Result<Repaired, Why> {
    if object.data.len() as u64 > limits.object_size {
        return Err("larger than what is read".into());
    }
    if plan.substitute {
        if object.kind != ObjectKind::Message {
            return Err("a file has no header that could stay".into());
        }
        let with = fields::substitute(object.data, plan);
        if with.len() as u64 > plan.size_max {
            return Err(format!("{} bytes would be more than {}", with.len(), plan.size_max));
        }
        let edits = vec![edit(0..object.data.len(), with)];
        return Ok(Repaired { edits, done: Vec::new() });
    }
    let (_, trace) = object::trace(limits, object);
    if let Some(order) = plan.orders.iter().find(|o| o.part as usize >= trace.nodes.len()) {
        return Err(format!("there is no part {}", order.part));
    }
    let mut job = Job { trace, data: object.data, plan, limits, edits: BTreeMap::new() };
    let targets = job.targets()?;
    let mut done = Vec::new();
    for (target, orders) in &targets {
        done.extend(job.treat(target, orders, &targets)?);
    }
    done.sort_by_key(|d: &Done| plan.orders.iter().position(|o| o.part == d.part));
    job.gather(&targets)?;
    let mut edits = job.edits.remove(&0).unwrap_or_default();
    if object.kind == ObjectKind::Message {
        edits.extend(fields::edits(object.data, plan));
    }
    let edits = arranged(edits)?;
    let size = edits.iter().fold(object.data.len() as u64, |size, e| {
        (size + e.with.len() as u64).saturating_sub(e.len)
    });
    if size > plan.size_max {
        return Err(format!("{size} bytes would be more than {}", plan.size_max));
    }
    Ok(Repaired { edits, done })
}

/// A portion that is to be treated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    /// The part in whose bytes it lies; none for the object as a whole.
    container: Option<u32>,
    start: usize,
    end: usize,
    /// A part that it is, or the first one in it.
    node: u32,
}

impl Target {
    fn same(&self, other: &Self) -> bool {
        (self.container, self.start, self.end) == (other.container, other.start, other.end)
    }
}

type Targets<'p> = Vec<(Target, Vec<&'p Order>)>;

struct Job<'a> {
    trace: Trace,
    data: &'a [u8],
    plan: &'a Plan,
    limits: &'a Limits,
    /// Edits of the bytes of each part that holds portions.
    edits: BTreeMap<u32, Vec<Edit>>,
}

impl<'a> Job<'a> {
    fn node(&self, number: u32) -> &Node {
        &self.trace.nodes[number as usize]
    }

    fn ancestors(&self, number: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(number), |&n| self.node(n).parent)
    }

    /// The portions to be treated with the orders that they serve. An order for a part in which another ordered
    /// part lies is served with that one: a detection in plain text is one of everything around it too.
    fn targets(&self) -> Result<Targets<'a>, Why> {
        let mut outer = BTreeSet::new();
        for order in &self.plan.orders {
            outer.extend(self.ancestors(order.part).skip(1));
        }
        let mut targets: Targets<'a> = Vec::new();
        for order in self.plan.orders.iter().filter(|o| !outer.contains(&o.part)) {
            let target = self.target(order)?;
            match targets.iter_mut().find(|(t, _)| t.same(&target)) {
                Some((_, orders)) => orders.push(order),
                None => targets.push((target, vec![order])),
            }
        }
        targets.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(targets)
    }

    fn target(&self, order: &Order) -> Result<Target, Why> {
        let mut signed = false;
        for number in self.ancestors(order.part) {
            let node = self.node(number);
            let range = match &node.origin {
                Origin::Portion(portion) if portion.sure => portion.segment.clone(),
                Origin::Section(range) => range.clone(),
                Origin::Portion(_) | Origin::Inside => continue,
            };
            let Some(container) = node.parent else { continue };
            if self.is_signed(number) {
                signed = true;
                continue;
            }
            if self.can_be_edited(container) {
                let (start, end) = (range.start, range.end);
                return Ok(Target { container: Some(container), start, end, node: number });
            }
        }
        if signed {
            return Err("inside a signature".into());
        }
        let cleanable = order.remedies.contains(&Remedy::Clean);
        if cleanable && self.node(0).kind != Kind::Message {
            return Ok(Target { container: None, start: 0, end: self.data.len(), node: 0 });
        }
        // A message that is one single portion, in whose header or raw bytes something was found.
        if let [only] = self.children(0)[..]
            && order.part == 0
            && matches!(&self.node(only).origin, Origin::Portion(p) if p.sure && p.delimiter.is_none())
            && !self.is_signed(only)
        {
            let (start, end) = (0, self.data.len());
            return Ok(Target { container: Some(0), start, end, node: only });
        }
        Err("no portion on which all mail readers agree".into())
    }

    fn children(&self, number: u32) -> Vec<u32> {
        let nodes = self.trace.nodes.iter().enumerate();
        nodes.filter(|(_, n)| n.parent == Some(number)).map(|(i, _)| i as u32).collect()
    }

    fn is_signed(&self, number: u32) -> bool {
        let signed = |n: u32| matches!(&self.node(n).origin, Origin::Portion(p) if p.signed);
        !self.plan.edit_signed && self.ancestors(number).any(signed)
    }

    /// Whether the bytes of this part can be edited: it is the object, or a portion that can be encoded again.
    fn can_be_edited(&self, number: u32) -> bool {
        let node = self.node(number);
        match (&node.origin, node.parent) {
            (_, None) => true,
            (Origin::Portion(p), Some(parent)) => {
                p.sure
                    && p.encoding.is_some_and(|e| e != Encoding::Unknown)
                    && self.can_be_edited(parent)
            }
            (Origin::Section(_) | Origin::Inside, Some(_)) => false,
        }
    }

    /// The bytes of a part that can be edited.
    fn content(&self, number: u32) -> Cow<'a, [u8]> {
        let node = self.node(number);
        let (Origin::Portion(portion), Some(parent)) = (&node.origin, node.parent) else {
            return Cow::Borrowed(self.data);
        };
        let encoding = portion.encoding.unwrap_or(Encoding::Identity);
        match self.content(parent) {
            Cow::Borrowed(whole) => decode(encoding, &whole[portion.body.clone()]).data,
            Cow::Owned(whole) => {
                Cow::Owned(decode(encoding, &whole[portion.body.clone()]).data.into_owned())
            }
        }
    }

    /// Chooses the remedy and puts its edits down: the strictest of those that the orders come to.
    fn treat(
        &mut self,
        target: &Target,
        orders: &[&Order],
        targets: &Targets<'_>,
    ) -> Result<Vec<Done>, Why> {
        let mut chosen: Option<(Remedy, Vec<Edit>, String)> = None;
        for order in orders {
            let mut why = "no remedy was ordered".to_owned();
            let mut found = None;
            for &remedy in &order.remedies {
                if chosen.as_ref().is_some_and(|(r, _, _)| *r == remedy) {
                    found = chosen.take();
                    break;
                }
                match self.remedy(remedy, target, orders, targets) {
                    Ok((edits, detail)) => {
                        found = Some((remedy, edits, detail));
                        break;
                    }
                    Err(reason) => why = reason,
                }
            }
            let Some(found) = found else { return Err(why) };
            chosen = match chosen {
                Some(other) if other.0 > found.0 => Some(other),
                _ => Some(found),
            };
        }
        let Some((remedy, edits, detail)) = chosen else { return Ok(Vec::new()) };
        self.edits.entry(target.container.unwrap_or(0)).or_default().extend(edits);
        let name = self.node(target.node).name.clone();
        let done = |order: &&Order| Done {
            part: order.part,
            name: name.clone(),
            remedy,
            detail: detail.clone(),
        };
        Ok(orders.iter().map(done).collect())
    }

    fn remedy(
        &self,
        remedy: Remedy,
        target: &Target,
        orders: &[&Order],
        targets: &Targets<'_>,
    ) -> Result<(Vec<Edit>, String), Why> {
        let node = self.node(target.node);
        let Some(container) = target.container else {
            return match remedy {
                Remedy::Clean => {
                    let (with, detail) = self.clean(target.node, self.data, orders)?;
                    Ok((vec![edit(0..self.data.len(), with)], detail))
                }
                Remedy::Strip | Remedy::Replace | Remedy::Scramble => {
                    Err(format!("a file cannot be treated by {}", remedy.as_str()))
                }
            };
        };
        let whole = self.content(container);
        let ending = line_end(&whole);
        match (&node.origin, remedy) {
            (Origin::Portion(p), Remedy::Strip | Remedy::Replace) => {
                let notice = (remedy == Remedy::Replace).then_some(&self.plan.notice[..]);
                let detail = if notice.is_some() { "replaced by a text" } else { "removed" };
                let edits = match p.delimiter {
                    None => text::single(&whole, p, notice.unwrap_or_default())?,
                    Some(from) if notice.is_none() && !self.is_last(target, p, targets) => {
                        vec![edit(from..end_of(&whole, p.segment.clone()), Vec::new())]
                    }
                    Some(_) => {
                        let with = text::portion(notice.unwrap_or_default(), ending);
                        vec![edit(p.segment.start..end_of(&whole, p.segment.clone()), with)]
                    }
                };
                Ok((edits, detail.to_owned()))
            }
            (Origin::Portion(p), Remedy::Scramble) => {
                let encoding = p.encoding.ok_or("its encoding is not sure")?;
                let body = &whole[p.body.clone()];
                let with = match encoding {
                    Encoding::Uuencode => text::scrambled_sections(body),
                    Encoding::Identity
                    | Encoding::Base64
                    | Encoding::QuotedPrintable
                    | Encoding::Unknown => text::scrambled(body),
                };
                Ok((vec![edit(p.body.clone(), with)], "made unreadable".to_owned()))
            }
            (Origin::Portion(p), Remedy::Clean) => {
                let encoding = p.encoding.ok_or("its encoding is not sure")?;
                let content = decode(encoding, &whole[p.body.clone()]).data;
                let (cleaned, detail) = self.clean(target.node, &content, orders)?;
                let body = &whole[p.body.clone()];
                let with = encoded(encoding, &cleaned, body, &node.name, ending)?;
                Ok((vec![edit(p.body.clone(), with)], detail))
            }
            (Origin::Section(range), Remedy::Strip) => {
                Ok((vec![edit(range.clone(), Vec::new())], "removed".to_owned()))
            }
            (Origin::Section(range), Remedy::Replace) => {
                let with = text::section(&self.plan.notice, ending);
                Ok((vec![edit(range.clone(), with)], "replaced by a text".to_owned()))
            }
            (Origin::Section(range), Remedy::Scramble) => {
                let with = text::scrambled_sections(&whole[range.clone()]);
                Ok((vec![edit(range.clone(), with)], "made unreadable".to_owned()))
            }
            (Origin::Section(_), Remedy::Clean) => {
                Err("a section of a text cannot be cleaned".to_owned())
            }
            (Origin::Inside, _) => Err("no portion".to_owned()),
        }
    }

    /// Whether a stripped portion is the last one of a multipart of which nothing else stays: RFC 2046 wants one.
    fn is_last(&self, target: &Target, portion: &Portion, targets: &Targets<'_>) -> bool {
        let of_it: Vec<&Target> = targets
            .iter()
            .map(|(t, _)| t)
            .filter(|t| {
                t.container == target.container
                    && matches!(&self.node(t.node).origin, Origin::Portion(p)
                        if p.delimiter.is_some() && p.multipart == portion.multipart)
            })
            .collect();
        let parts = self.trace.multiparts.get(portion.multipart).copied().unwrap_or(0);
        of_it.len() >= parts && of_it.last().is_some_and(|t| t.same(target))
    }

    fn clean(
        &self,
        number: u32,
        content: &[u8],
        orders: &[&Order],
    ) -> Result<(Vec<u8>, String), Why> {
        let chain = |order: &&Order| {
            let mut chain: Vec<clean::Member<'_>> = self
                .ancestors(order.part)
                .take_while(|&n| n != number)
                .map(|n| {
                    let node = self.node(n);
                    clean::Member { name: &node.name, kind: node.kind, hash: node.hash }
                })
                .collect();
            chain.reverse();
            chain
        };
        let chains: Vec<_> = orders.iter().map(chain).collect();
        let most = self.limits.unpacked_size;
        clean::clean(self.node(number).kind, content, &chains, most)
    }

    /// Carries the edits of inner messages and texts out to the object, encoding again what was encoded.
    fn gather(&mut self, targets: &Targets<'_>) -> Result<(), Why> {
        while let Some((&number, _)) = self.edits.last_key_value() {
            if number == 0 {
                break;
            }
            let Some(edits) = self.edits.remove(&number) else { break };
            // What is treated as a whole needs no edits inside.
            let whole = self.ancestors(number).any(|n| {
                let Origin::Portion(p) = &self.node(n).origin else { return false };
                let (container, range) = (self.node(n).parent, &p.segment);
                targets.iter().any(|(t, _)| {
                    t.container == container && t.start <= range.start && t.end >= range.end
                })
            });
            let node = self.node(number);
            let (Origin::Portion(portion), Some(parent), false) =
                (&node.origin, node.parent, whole)
            else {
                continue;
            };
            let mut outer = Vec::new();
            match portion.encoding {
                Some(Encoding::Identity) => {
                    let by = portion.body.start as u64;
                    outer.extend(edits.into_iter().map(|e| Edit { at: e.at + by, ..e }));
                }
                Some(encoding) => {
                    let content = self.content(number);
                    let edits = arranged(edits)?;
                    let edited = Repaired { edits, done: Vec::new() }.apply(&content);
                    let around = self.content(parent);
                    let (body, ending) = (&around[portion.body.clone()], line_end(&around));
                    let with = encoded(encoding, &edited, body, &node.name, ending)?;
                    outer.push(edit(portion.body.clone(), with));
                }
                None => return Err("its encoding is not sure".into()),
            }
            self.edits.entry(parent).or_default().extend(outer);
        }
        Ok(())
    }
}

fn edit(range: Range<usize>, with: Vec<u8>) -> Edit {
    Edit { at: range.start as u64, len: range.len() as u64, with }
}

/// Sorted edits without those inside others.
///
/// # Errors
/// When two overlap otherwise.
fn arranged(mut edits: Vec<Edit>) -> Result<Vec<Edit>, Why> {
    // What is put before something is not part of it.
    edits.sort_by_key(|e| (e.at, e.len > 0, std::cmp::Reverse(e.len)));
    let mut out: Vec<Edit> = Vec::with_capacity(edits.len());
    for edit in edits {
        let end = out.last().map_or(0, |last| last.at + last.len);
        if edit.at >= end {
            out.push(edit);
        } else if edit.at + edit.len > end {
            return Err("portions that overlap".into());
        }
    }
    Ok(out)
}

/// The line end of a text: CRLF, unless its first line says otherwise.
fn line_end(data: &[u8]) -> &'static str {
    match memchr::memchr(b'\n', data) {
        Some(i) if i == 0 || data[i - 1] != b'\r' => "\n",
        _ => "\r\n",
    }
}

/// The end of what is cut out: a line end that ends everything stays.
fn end_of(whole: &[u8], range: Range<usize>) -> usize {
    if range.end < whole.len() {
        return range.end;
    }
    let text = &whole[range.clone()];
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    range.start + text.strip_suffix(b"\r").unwrap_or(text).len()
}

/// Encodes content again as its body was encoded; the end of the body stays as it was.
fn encoded(
    encoding: Encoding,
    content: &[u8],
    body: &[u8],
    name: &str,
    ending: &str,
) -> Result<Vec<u8>, Why> {
    let mut out = match encoding {
        Encoding::Identity => return Ok(content.to_vec()),
        Encoding::Base64 => encoding::to_base64(content, 76, ending).into_bytes(),
        Encoding::QuotedPrintable => {
            let out = encoding::to_quoted_printable(content, ending, true);
            // Only text has line ends that quoted-printable keeps.
            if encoding::quoted_printable(out.as_bytes()) == content {
                out.into_bytes()
            } else {
                encoding::to_quoted_printable(content, ending, false).into_bytes()
            }
        }
        Encoding::Uuencode => uu::encode(name, content, ending).into_bytes(),
        Encoding::Unknown => return Err("its encoding is not known".into()),
    };
    if matches!(encoding, Encoding::Base64) && body.ends_with(b"\n") {
        out.extend_from_slice(ending.as_bytes());
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
