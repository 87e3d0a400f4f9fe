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
        self.memory.give(CLIENT, &key(path), restart, begun, &object, &version).unwrap()
    }

    async fn recall(&self, path: &'static str, rules: &str) -> Result<Arc<Version>, Fetch> {
        self.memory.recall(&key(path), CLIENT, rules, Duration::from_millis(50)).await
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

#[tokio::test]
async fn a_piece_waits_for_the_fetch_of_the_whole() {
    let bench = Bench::new();
    let fetch = bench.memory.fetch(key("a"));
    assert!(bench.recall("a", "rules").await.is_err(), "not for ever");
    let memory = Arc::clone(&bench.memory);
    let waiting = tokio::spawn(async move {
        memory.recall(&key("a"), CLIENT, "rules", Duration::from_secs(20)).await.map(|v| v.len())
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
        let given = bench.memory.give(CLIENT, &key, 0, Instant::now(), &object, &version);
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
