//! The filter against a plain search.

use super::*;
use crate::engine::needle::{NEEDLE_MIN, XOR_MIN};
use proptest::prelude::*;

/// What lies in the data, by searching for each literal at each place.
fn plain(needles: &[Needle], data: &[u8]) -> Vec<u32> {
    let lies = |needle: &Needle| {
        data.windows(needle.bytes.len()).any(|window| match needle.how {
            How::Exact => window == needle.bytes,
            How::Nocase => window.eq_ignore_ascii_case(&needle.bytes),
            How::Xor(first, last) => {
                let key = window[0] ^ needle.bytes[0];
                (first..=last).contains(&key)
                    && window.iter().zip(&needle.bytes).all(|(a, b)| a ^ b == key)
            }
        })
    };
    (0..needles.len() as u32).filter(|&i| lies(&needles[i as usize])).collect()
}

fn sorted(seen: &Seen) -> Vec<u32> {
    let mut list = seen.list().to_vec();
    list.sort_unstable();
    list
}

/// Letters from a small alphabet, so that windows meet by chance.
fn letters(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(proptest::sample::select(b"aAbB\0 ".to_vec()), len)
}

fn a_needle() -> impl Strategy<Value = Needle> {
    let keys = (any::<u8>(), any::<u8>(), any::<bool>());
    (letters(NEEDLE_MIN..NEEDLE_MAX + 1), 0usize..3, keys).prop_map(
        |(mut bytes, how, (a, b, all))| {
            let keys = if all { How::Xor(0, 255) } else { How::Xor(a.min(b), a.max(b)) };
            let how = [How::Exact, How::Nocase, keys][how];
            match how {
                How::Exact => {}
                How::Nocase => bytes.make_ascii_lowercase(),
                How::Xor(..) => bytes.resize(bytes.len().max(XOR_MIN), b'x'),
            }
            Needle { bytes, how }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_filter_finds_what_a_plain_search_finds(
        needles in proptest::collection::vec(a_needle(), 1..60),
        pieces in proptest::collection::vec((letters(0..40), any::<proptest::sample::Index>(), any::<u8>()), 0..12),
        cuts in proptest::collection::vec(1usize..90, 1..40),
    ) {
        let mut data = Vec::new();
        for (noise, pick, key) in &pieces {
            data.extend_from_slice(noise);
            let needle = pick.get(&needles);
            data.extend(needle.bytes.iter().map(|&b| match needle.how {
                How::Exact => b,
                How::Nocase if key % 2 == 0 => b.to_ascii_uppercase(),
                How::Nocase => b,
                How::Xor(..) => b ^ key,
            }));
        }
        let filter = Filter::new(&needles);
        let expected = plain(&needles, &data);
        let mut seen = Seen::new(&filter);
        filter.scan(&data, &mut seen);
        prop_assert_eq!(sorted(&seen), &expected[..]);
        seen.clear();
        prop_assert!(needles.iter().enumerate().all(|(i, _)| !seen.has(i as u32)));
        let (mut stream, mut len, mut cuts) = (Stream::default(), 0, cuts.iter().cycle());
        while len < data.len() {
            len = data.len().min(len + *cuts.next().unwrap());
            stream.grown(&filter, &data[..len], &mut seen, *cuts.next().unwrap());
        }
        stream.ended(&filter, &data, &mut seen);
        prop_assert_eq!(sorted(&seen), expected);
    }
}

#[test]
fn literals_of_every_length_are_found_at_every_place_and_across_every_border() {
    let text: Vec<u8> = (0..NEEDLE_MAX as u8).map(|i| i.wrapping_mul(37) ^ 0x5a).collect();
    let xor = How::Xor(0, 255);
    for how in [How::Exact, How::Nocase, xor, How::Xor(0x77, 0x77), How::Xor(1, 255)] {
        let is_xor = matches!(how, How::Xor(..));
        for len in if is_xor { XOR_MIN } else { NEEDLE_MIN }..=NEEDLE_MAX {
            let needle = Needle { bytes: text[..len].to_ascii_lowercase(), how };
            let key = if is_xor { 0x77 } else { 0 };
            let there: Vec<u8> = needle.bytes.iter().map(|b| b ^ key).collect();
            let filter = Filter::new(std::slice::from_ref(&needle));
            for place in 0..70 {
                let data = [&vec![b'.'; place][..], &there, &[b'.'; 3]].concat();
                let mut seen = Seen::new(&filter);
                filter.scan(&data, &mut seen);
                assert_eq!(seen.list(), [0], "{how:?}, {len} bytes at {place}");
                seen.clear();
                let mut stream = Stream::default();
                let border = place + len / 2;
                stream.grown(&filter, &data[..border], &mut seen, border);
                assert!(seen.list().is_empty());
                stream.ended(&filter, &data, &mut seen);
                assert_eq!(seen.list(), [0], "{how:?}, {len} bytes at {place}, split");
            }
        }
    }
}

/// Literals of every length and shapes, together, in data that is cut at every place: the stream sees what the whole shows.
#[test]
fn a_stream_that_is_cut_anywhere_sees_what_the_whole_shows() {
    use crate::engine::shape::shapes;
    const RULES: &[u8] = br#"
        rule a { strings:
            $a = { 81 ?? 74 63 [2-20] 80 ?? 02 73 }
            $b = { F7 4D [1-16] 3C [4-8] 50 45 }
            $c = { ( C3 | 5? ) 66 81 ?? 77 67 }
            $d = /q\^[a-c]{2,3}z/ wide ascii nocase
            $e = /x~y.*z~w/
            $f = /k\^?e\^y\^?s\^/
            $g = "<%" wide
            $h = /[xyz][0-9][0-9a-f]{3}-[a-f]/
        condition: any of them }
    "#;
    let ast = yara_x_parser::ast::AST::from(yara_x_parser::Parser::new(RULES));
    let patterns = ast.rules().flat_map(|rule| rule.patterns.iter().flatten());
    let shapes: Vec<Shape> = patterns.filter_map(shapes).flatten().collect();
    assert!(shapes.len() >= 5, "{}", shapes.len());
    let words: &[(&[u8], How)] = &[
        (b"tick", How::Exact),
        (b"MZ\x90\0", How::Exact),
        (b"short", How::Nocase),
        (b"seven77", How::Exact),
        (b"eleven bytes", How::Nocase),
        (b"under an unknown key", How::Xor(0, 255)),
        (b"a literal of quite some length, up to the", How::Exact),
    ];
    let needles: Vec<Needle> = words
        .iter()
        .map(|(bytes, how)| Needle {
            bytes: bytes[..bytes.len().min(NEEDLE_MAX)].to_vec(),
            how: *how,
        })
        .collect();
    let filter = Filter::of(&needles, &choose(&needles), &shapes);
    let mut data = b"..\x81\xff\x74\x63......\x80\x05\x02\x73".to_vec();
    data.extend(b"\xf7\x4d............\x3c.....\x50\x45..\xc3\x66\x81\x00\x77\x67..Q^abZ.");
    data.extend(b"x~y .. z~w, ke^ys^ ..y5abc-d.<\0%\0 tick MZ\x90\0 SHORT seven77 Eleven BYTES ");
    data.extend(b"under an unknown key".iter().map(|b| b ^ 0x41));
    data.extend(b" a literal of quite some length, up to the end");
    let mut whole = Seen::new(&filter);
    filter.scan(&data, &mut whole);
    let literals = needles.len() as u32;
    assert!((0..literals).all(|n| whole.has(n)), "{:?}", sorted(&whole));
    assert!(whole.list().len() >= needles.len() + 5, "{:?}", sorted(&whole));
    let check = |data: &[u8], cuts: &mut dyn Iterator<Item = usize>, what: &str| {
        let (mut seen, mut stream) = (Seen::new(&filter), Stream::default());
        let mut early = 0;
        for cut in cuts {
            early += stream.grown(&filter, &data[..cut.min(data.len())], &mut seen, usize::MAX);
        }
        assert_eq!(early, stream.at());
        stream.ended(&filter, data, &mut seen);
        assert_eq!(sorted(&seen), sorted(&whole), "{what}");
        early
    };
    assert!(filter.reach < data.len() / 2, "much is looked at before the end");
    for a in 0..=data.len() {
        check(&data, &mut [a].into_iter(), &format!("cut at {a}"));
        for b in (a..=data.len()).step_by(3) {
            check(&data, &mut [a, b].into_iter(), &format!("cut at {a} and {b}"));
        }
    }
    for len in 1..100 {
        let early = check(&data, &mut (0..=data.len()).step_by(len), &format!("pieces of {len}"));
        assert!(early > 0);
    }
    // Far from both ends, where blocks of the fast way are.
    for front in [31, 32, 33, 127, 128, 129, 4095] {
        let far = [&vec![b'.'; front][..], &data, &[b'.'; 200]].concat();
        for len in [1, 7, 31, 32, 33, 64, 127, 128, 129, 1460, 4096] {
            let what = format!("{front} before it, pieces of {len}");
            check(&far, &mut (0..far.len() + len).step_by(len), &what);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_wide_look_sees_what_the_portable_one_sees(
        needles in proptest::collection::vec(a_needle(), 1..200),
        block in proptest::collection::vec(any::<u8>(), BLOCK * 4 + LONG + 1..BLOCK * 4 + LONG + 2),
        letters in letters(BLOCK * 4 + LONG + 1..BLOCK * 4 + LONG + 2),
        triples in proptest::collection::vec(any::<u32>(), 0..2000),
    ) {
        let mut filter = Filter::new(&needles);
        if !triples.is_empty() {
            filter.tables.triples = vec![0; TRIPLE_WORDS];
            for hash in triples.iter().map(|&t| triple_hash(t)) {
                filter.tables.triples[triple_index(hash)] |= mask(hash);
            }
        }
        for data in [&block, &letters] {
            let mut portable = Vec::new();
            for at in (0..BLOCK * 4).step_by(BLOCK) {
                let steps = filter.tables.steps(&data[at..]);
                probe::each(steps, at, &mut |at, found| portable.push((at, found)));
            }
            let mut wide = Vec::new();
            if let Some(way) = wide::Wide::of(&filter.tables) {
                prop_assert_eq!(way.scan(data, &mut |at, found| wide.push((at, found))), BLOCK * 4);
                prop_assert_eq!(wide, portable);
            }
        }
    }
}
