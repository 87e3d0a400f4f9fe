//! Objects that are looked at while they arrive: the literal filter and the hash of what came before, so that both are
//! all but done when the last byte comes.
//!
//! Bytes that have come do not change, and windows are looked at only where all that they can lead to has come
//! ([`Stream`]): what was seen in the end is what one look at the whole sees. Nothing is decoded, and no rule runs.

use super::filter::{Seen, Stream};
use super::known::Key;
use super::yara::Yara;
use crate::object::Part;

/// Most bytes of one look: whoever waits for the worker waits some hundredths of a second.
const LOOK_MAX: usize = 16 << 20;

/// How far an object was looked at, and what was seen.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// Of each set of rules.
    sets: Vec<(Seen, Stream)>,
    hasher: blake3::Hasher,
    /// Bytes in the hash.
    hashed: usize,
    /// Address and length of the whole, once it is there.
    whole: Option<(usize, usize)>,
}

impl Ahead {
    pub(super) fn new(sets: &[Yara<'_>]) -> Self {
        let empty = |yara: &Yara<'_>| (Seen::new(yara.set.plan.filter()), Stream::default());
        Self {
            sets: sets.iter().map(empty).collect(),
            hasher: blake3::Hasher::new(),
            hashed: 0,
            whole: None,
        }
    }

    pub(super) fn look(&mut self, sets: &[Yara<'_>], data: &[u8]) -> usize {
        let mut looked = 0;
        for (yara, (seen, stream)) in sets.iter().zip(&mut self.sets) {
            looked = looked.max(stream.grown(yara.set.plan.filter(), data, seen, LOOK_MAX));
        }
        let to = data.len().min(self.hashed + LOOK_MAX);
        if let Some(more) = data.get(self.hashed..to) {
            self.hasher.update(more);
            self.hashed = to;
        }
        looked
    }

    /// All of it is there. One that is shorter than what was looked at is another one.
    pub(super) fn whole(&mut self, data: &[u8]) -> usize {
        let looked = self.sets.iter().map(|(_, stream)| stream.at()).max().unwrap_or(0);
        let fits = looked.max(self.hashed) <= data.len();
        self.whole = fits.then_some((data.as_ptr().addr(), data.len()));
        if fits { looked } else { 0 }
    }

    /// Whether these bytes are the whole: the very same memory.
    pub(super) fn is_of(&self, data: &[u8]) -> bool {
        self.whole == Some((data.as_ptr().addr(), data.len()))
    }

    /// The key of a part that is the whole.
    pub(super) fn key(&self, part: &Part<'_>) -> Key {
        Key::of_begun(part, self.hasher.clone(), self.hashed)
    }

    /// The next data that the sets look at is the whole, and all of them do.
    pub(super) fn give(self, sets: &mut [Yara<'_>]) {
        for (yara, (seen, stream)) in sets.iter_mut().zip(self.sets) {
            yara.gate.go_on(seen, stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::{Engines, Signatures};
    use crate::object::{Engine, Hit, Part};
    use crate::process::crew::{Cores, Crew};
    use crate::sniff::Kind;

    const RULES: &str = r#"
        rule a { strings: $a = "the first literal of some length" condition: $a }
        rule b { strings: $a = "q~#4" condition: $a }
        rule c { strings: $a = { 81 ?? 74 63 [2-20] 80 ?? 02 73 } condition: $a }
        rule other { strings: $a = "nobody has this one" condition: $a }
    "#;

    fn signatures() -> Signatures {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.yar"), RULES).unwrap();
        Signatures::load(&[dir.path().to_owned()], None).unwrap_or_else(|e| panic!("{}", e[0]))
    }

    fn scan(engines: &mut Engines<'_>, data: &[u8]) -> Vec<String> {
        let mut hits: Vec<Hit> = Vec::new();
        let part = Part { data, kind: Kind::Data, name: "x", path: &[], detail: false };
        engines.scan(&part, &mut hits).unwrap();
        hits.into_iter().map(|hit| hit.name).collect()
    }

    #[test]
    fn an_object_that_arrives_in_pieces_has_the_findings_of_the_whole() {
        let loaded = signatures();
        let crew = Crew::start(2, Cores::alone(3)).unwrap();
        let mut alone = Engines::new(&loaded).remembering(100);
        let mut together = Engines::new(&loaded).helped_from(crew, 1, 64);
        let mut data = vec![b'.'; 800];
        for (at, what) in [
            (90, &b"the first literal of some length"[..]),
            (301, b"q~#4"),
            (510, b"\x81\x11tc....\x80\x05\x02s"),
        ] {
            data[at..at + what.len()].copy_from_slice(what);
        }
        for step in (1..=data.len()).step_by(13) {
            // Another one each time: what is remembered is not looked at.
            data[..2].copy_from_slice(&(step as u16).to_le_bytes());
            for engines in [&mut alone, &mut together] {
                let mut ahead = engines.arriving();
                let mut looked = 0;
                for len in (0..data.len()).step_by(step) {
                    looked += engines.look_ahead(&mut ahead, &data[..len]);
                }
                assert_eq!(engines.arrived(ahead.clone(), &data), looked);
                assert!(step > 300 || looked > 300, "{looked} in pieces of {step}");
                assert_eq!(scan(engines, &data), ["a", "b", "c"], "pieces of {step}");
                // It came again, whole; and something else came in its place.
                assert_eq!(scan(engines, &data), ["a", "b", "c"]);
                engines.arrived(ahead.clone(), &data);
                assert!(scan(engines, b"something else").is_empty());
                assert_eq!(scan(engines, &data[200..]), ["b", "c"]);
                // What is shorter than what was looked at is another one.
                if looked > 100 {
                    assert_eq!(engines.arrived(ahead, &data[..50]), 0);
                    assert!(scan(engines, &data[..50]).is_empty());
                }
            }
        }
    }

    #[test]
    fn the_hash_of_what_arrived_is_the_hash_of_the_whole() {
        let loaded = signatures();
        let mut engines = Engines::new(&loaded).remembering(100);
        let data: Vec<u8> = (0..100_000u32).map(|i| ((i * 31) >> 3) as u8).collect();
        scan(&mut engines, &data);
        assert_eq!(engines.take_known(), 0);
        let mut ahead = engines.arriving();
        for len in [0, 1, 999, 40_000, 40_001, 99_999] {
            engines.look_ahead(&mut ahead, &data[..len]);
        }
        engines.arrived(ahead, &data);
        scan(&mut engines, &data);
        assert_eq!(engines.take_known(), 1, "it is known again");
        assert_eq!(
            scan(&mut engines, b"... q~#4 ..."),
            ["b"],
            "what was not asked for is forgotten"
        );
    }
}
