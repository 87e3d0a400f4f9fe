use super::*;
use crate::spool::Spool;

const LEN: usize = 3 * BLOCK + 1000;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| ((i / 7 + seed) % 253) as u8).collect()
}

struct Bench {
    spool: Spool,
    memory: Arc<Memory>,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::new(directory.path(), 64 << 20, 1 << 20, 16 << 20).unwrap();
        Self { spool, memory: Arc::default(), _directory: directory }
    }

    fn object(&self, bytes: &[u8]) -> Object {
        let mut writer = self.spool.writer();
        writer.write(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn give(&self, path: &'static str, restart: u64, bytes: &[u8]) -> bool {
        self.give_since(path, restart, bytes, Instant::now())
    }

    fn give_since(&self, path: &'static str, restart: u64, bytes: &[u8], begun: Instant) -> bool {
        let object = self.object(bytes);
        let version = Arc::new(Version::of(&object, "rules".to_owned()));
        self.memory.give(CLIENT, &key(path), restart, begun, &object, &version, true).unwrap()
    }

    async fn recall(&self, path: &'static str, rules: &str) -> Result<Arc<Version>, Fetch> {
        self.memory.recall(&key(path), CLIENT, 0, rules, Duration::from_millis(50)).await
    }
}

const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn key(path: &'static str) -> Key {
    Key { server: ([192, 0, 2, 1], 21).into(), path: Bytes::from_static(path.as_bytes()) }
}

#[tokio::test]
async fn a_version_is_known_by_its_blocks_and_for_its_rules() {
    let bench = Bench::new();
    let bytes = pattern(LEN, 0);
    assert!(bench.give("a", 0, &bytes));
    let version = bench.recall("a", "rules").await.unwrap();
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        let index = index as u64;
        assert!(version.has_block(index, block));
        assert!(!version.has_block(index + 1, block));
        assert!(!version.has_block(index, &block[..block.len() - 1]), "a part of a block");
        let mut changed = block.to_vec();
        changed[500] ^= 1;
        assert!(!version.has_block(index, &changed));
    }
    assert!(!version.has_block(4, &[]));
    assert!(!version.has_block(3, &[&bytes[3 * BLOCK..], b"x"].concat()), "it grew");
    assert!(bench.recall("a", "other rules").await.is_err());
    assert!(bench.recall("b", "rules").await.is_err());
    bench.memory.forget(&key("a"));
    assert!(bench.recall("a", "rules").await.is_err());
    assert_eq!(bench.memory.state().blocks, 4, "what the client has is still known");
}

#[test]
fn pieces_of_two_versions_are_not_put_together() {
    let bench = Bench::new();
    let one = pattern(LEN, 0);
    let other = [&one[..2 * BLOCK], &pattern(LEN - 2 * BLOCK, 9)].concat();
    let begun = Instant::now();
    assert!(bench.give("a", 0, &one));
    for restart in [1, BLOCK as u64, LEN as u64] {
        assert!(bench.give("a", restart, &one), "the same");
        assert!(!bench.give("a", restart, &other), "{restart}");
    }
    // A client that begins again may have another, but not one that began before the pieces came.
    assert!(!bench.give_since("a", 0, &other, begun));
    assert!(bench.give("a", 0, &other));
    assert!(!bench.give("a", 5, &one));
    // Another client, another file, another name of it.
    assert!(bench.give("b", 5, &one));
    // A file that has grown.
    let grown = [&one[..], b" and more"].concat();
    assert!(bench.give("b", LEN as u64, &grown));
    assert!(!bench.give("b", LEN as u64, &one), "and shrunk");
    for small in [0, 1, 100, BLOCK - 1, BLOCK] {
        assert!(bench.give("c", 0, &one[..small]));
        assert!(bench.give("c", small as u64, &one), "{small}");
        if small > 0 {
            assert!(bench.give("c", 0, &one[..small]));
            assert!(!bench.give("c", small as u64, &pattern(LEN, 1)), "{small}");
        }
    }
}

#[test]
fn the_beginning_that_comes_last_is_of_the_same_version() {
    let bench = Bench::new();
    let (one, other) = (pattern(LEN, 0), pattern(LEN, 9));
    assert!(bench.give("a", 100, &one));
    assert!(bench.memory.has_pieces(CLIENT, &key("a")));
    assert!(!bench.give("a", 0, &other), "a first segment that was tried again");
    assert!(bench.give("a", 0, &one));
    assert!(!bench.memory.has_pieces(CLIENT, &key("a")));
    assert!(bench.give("a", 0, &other), "now it has the whole and may begin again");
    assert!(bench.give("b", 100, &one));
    let later = Instant::now() + PIECES_FOR;
    assert!(bench.give_since("b", 0, &other, later), "not for ever");
}

#[tokio::test]
async fn a_file_by_policy_and_another_are_not_put_together() {
    let bench = Bench::new();
    let (one, other) = (pattern(LEN, 0), pattern(LEN, 9));
    let object = bench.object(&one);
    let version = Arc::new(Version::of(&object, "rules".to_owned()));
    let now = Instant::now();
    assert!(bench.memory.give(CLIENT, &key("a"), 0, now, &object, &version, false).unwrap());
    assert!(bench.recall("a", "rules").await.is_err(), "each piece is scanned anew");
    assert!(!bench.give("a", 100, &other));
    assert!(bench.memory.give(CLIENT, &key("a"), 100, now, &object, &version, false).unwrap());
}

#[test]
fn what_was_checked_is_remembered() {
    let bench = Bench::new();
    let (one, other) = (pattern(LEN, 0), pattern(LEN, 9));
    let version = |bytes: &[u8]| Arc::new(Version::of(&bench.object(bytes), "rules".to_owned()));
    let checked = |bytes: &[u8]| bench.memory.checked(CLIENT, &key("a"), 100, &version(bytes));
    assert!(checked(&one) && checked(&one));
    assert!(!checked(&other), "between the look-up and the first block");
    assert!(!bench.give("a", 100, &other) && !bench.give("a", 0, &other));
    assert!(bench.give("a", 0, &one) && checked(&one) && bench.give("a", 0, &other));
}

#[test]
fn what_was_streamed_is_remembered() {
    let bench = Bench::new();
    let (one, other) = (pattern(LEN, 0), pattern(LEN, 9));
    let part = bench.object(&one[..BLOCK + 7]);
    let begun = Instant::now();
    bench.memory.streamed(CLIENT, key("a"), begun, Some(&part));
    assert!(!bench.give("a", 100, &other));
    assert!(bench.give("a", 100, &one));
    bench.memory.streamed(CLIENT, key("b"), begun, None);
    assert!(!bench.give("b", 100, &one) && bench.give("b", 0, &one));
    // Another segment came first: it stays what both are compared with.
    assert!(bench.give("c", 100, &other));
    bench.memory.streamed(CLIENT, key("c"), begun, Some(&part));
    assert!(!bench.give_since("c", 0, &one, begun));
    let state = bench.memory.state();
    let kept = state.versions.entries.values().map(|(version, _)| version.blocks.len());
    let given = state.given.entries.values().map(|(given, _)| given.version.blocks.len());
    assert_eq!(state.blocks, kept.chain(given).sum::<usize>());
}

#[test]
fn a_file_goes_on_with_the_same_version_at_another_address() {
    let bench = Bench::new();
    let (one, other) = (pattern(LEN, 0), pattern(LEN, 9));
    assert!(bench.give("a", 0, &one));
    let elsewhere = Key { server: ([192, 0, 2, 2], 21).into(), path: key("a").path };
    let give = |restart, bytes: &[u8]| {
        let object = bench.object(bytes);
        let version = Arc::new(Version::of(&object, "rules".to_owned()));
        let begun = Instant::now();
        let given = bench.memory.give(CLIENT, &elsewhere, restart, begun, &object, &version, true);
        given.unwrap()
    };
    assert!(!give(100, &other));
    assert!(give(100, &one));
    assert!(give(0, &other), "files of the same name at two servers");
    assert!(give(100, &other), "what it has from there counts first");
}

#[tokio::test]
async fn a_piece_waits_for_the_fetch_of_the_whole() {
    let bench = Bench::new();
    let fetch = bench.memory.fetch(key("a"));
    assert!(bench.recall("a", "rules").await.is_err(), "not for ever");
    let memory = Arc::clone(&bench.memory);
    let waiting = tokio::spawn(async move {
        memory.recall(&key("a"), CLIENT, 0, "rules", Duration::from_secs(20)).await.map(|v| v.len())
    });
    tokio::task::yield_now().await;
    assert!(bench.give("a", 0, &pattern(LEN, 0)));
    drop(fetch);
    assert_eq!(waiting.await.unwrap().unwrap(), LEN as u64);
    assert!(bench.memory.state().fetches.is_empty());
}

#[test]
fn what_was_caught_is_known_by_name_and_by_beginning() {
    let bench = Bench::new();
    let bytes = pattern(LEN, 3);
    let object = bench.object(&bytes);
    bench.memory.catch(key("bad"), object.prefix(), "eicar".to_owned());
    let caught = bench.memory.caught(&key("bad")).unwrap();
    assert_eq!(caught.reason, "eicar");
    assert!(caught.begins(&object.prefix()));
    assert!(!caught.begins(&bench.object(&bytes[1..]).prefix()));
    assert!(bench.memory.caught(&key("good")).is_none());
    assert!(bench.memory.caught_beginning(&bench.object(&bytes[..2 * BLOCK]).prefix()));
    for n in 0..=ENTRIES_MAX {
        let path = Bytes::from(format!("file-{n}"));
        let key = Key { server: key("x").server, path };
        bench.memory.catch(key, *blake3::hash(&n.to_le_bytes()).as_bytes(), String::new());
    }
    assert!(bench.memory.caught(&key("bad")).is_none(), "the oldest is forgotten");
    assert_eq!(bench.memory.state().caught.len(), ENTRIES_MAX);
}

#[test]
fn a_joined_upload_is_alone() {
    let bench = Bench::new();
    let memory = &bench.memory;
    let (one, two) = (memory.claim(&key("d/a"), false), memory.claim(&key("a"), false));
    assert!(one.is_some() && two.is_some(), "whole files replace each other");
    assert!(memory.claim(&key("a"), true).is_none());
    drop((one, two));
    let joined = memory.claim(&key("A"), true).unwrap();
    assert!(memory.claim(&key("./a"), false).is_none());
    assert!(memory.claim(&key("a"), true).is_none());
    assert!(memory.claim(&key("b"), true).is_some());
    drop(joined);
    assert!(memory.claim(&key("a"), true).is_some());
    assert!(memory.state().uploads.is_empty());
}

#[test]
fn memory_is_bounded() {
    let bench = Bench::new();
    let object = bench.object(b"x");
    let version = Arc::new(Version {
        hash: object.hash(),
        len: (BLOCKS_MAX / 8 * BLOCK) as u64,
        blocks: vec![[0; 32]; BLOCKS_MAX / 8],
        rules: String::new(),
    });
    for n in 0..20u8 {
        let path = Bytes::from(vec![b'a' + n]);
        let key = Key { server: key("x").server, path };
        let given = bench.memory.give(CLIENT, &key, 0, Instant::now(), &object, &version, true);
        assert!(given.unwrap());
        assert!(bench.memory.state().blocks <= BLOCKS_MAX);
    }
    let state = bench.memory.state();
    let kept = state.versions.len() + state.given.len();
    assert_eq!(state.blocks, kept * BLOCKS_MAX / 8);
    assert!(kept >= 4);
}

#[test]
fn a_server_is_trusted_a_little_less_than_it_waited() {
    let bench = Bench::new();
    let server = key("x").server;
    assert_eq!(bench.memory.patience(server), None);
    bench.memory.gave_up(server, Duration::from_secs(400));
    assert_eq!(bench.memory.patience(server), Some(Duration::from_secs(300)));
    bench.memory.gave_up(server, Duration::from_secs(1000));
    assert_eq!(bench.memory.patience(server), Some(Duration::from_secs(300)));
}
