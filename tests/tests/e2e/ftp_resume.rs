//! Files in pieces: resumed and segmented downloads, appended and resumed uploads, line ends. Nothing
//! infected is put together from them, and what is clean arrives as if no gateway were there.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::ftp::{Behaviour, Client, Mode, Server, Transfer};
use vscan_tests::lab::{Family, Lab, Topology};
use vscan_tests::peers::{ProFtpd, PyFtpd, Vsftpd};
use vscan_tests::raw::End;
use vscan_tests::{fixtures, on_both};

/// What [`settings`]' rule detects, wherever it stands; has a line end inside.
const PATTERN: &[u8] = b"VSCAN-PIECE\nTEST-PATTERN";

on_both!(
    real_clients_resume,
    a_pattern_cut_at_every_offset_is_found_in_downloads,
    a_pattern_cut_at_every_offset_is_found_in_uploads,
    pieces_of_two_versions_do_not_meet,
    line_ends_hide_nothing,
);

/// A rule that knows the pattern at any place.
pub(crate) fn settings(lab: &Lab, steering: Steering) -> Result<Settings> {
    let hex: String = PATTERN.iter().map(|byte| format!("{byte:02x} ")).collect();
    let rule = format!("rule Piece_Pattern {{ strings: $a = {{ {hex} }} condition: $a }}\n");
    let path = lab.gateway.dir().join("pieces.yar");
    fs::write(&path, rule)?;
    Ok(Settings::new(steering).with("scan", &format!("rules = [\"{}\"]", path.display())))
}

/// Random bytes with the pattern at this place.
pub(crate) fn infected(len: usize, at: usize) -> Vec<u8> {
    let mut file = fixtures::random(len, 77);
    file[at..at + PATTERN.len()].copy_from_slice(PATTERN);
    file
}

fn connect(lab: &Lab) -> Result<Client> {
    Client::connect(lab.client(), lab.dial(Family::V4, 21), Mode::Epsv)
}

fn resume(client: &mut Client, at: usize, name: &str) -> Result<Transfer> {
    client.control().ask(&format!("REST {at}"), "350")?;
    client.download(&format!("RETR {name}"))
}

fn blocked(transfer: &Transfer) -> bool {
    transfer.data.is_none() && transfer.reply.contains("blocked by vscan: Piece_Pattern")
}

const SIZE: usize = 3_000_000;
/// Where the local copies of the clients end.
const HALF: usize = 1_400_000;

/// What users of these clients do after a break, or to be faster; the pattern lies in what is missing, or
/// across the border.
fn real_clients_resume(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Masquerade)?;
    let server = Vsftpd::start(lab.server(), 21)?;
    let vscan = Vscan::start(&lab, &settings(&lab, steering)?)?;
    let good = fixtures::random(SIZE, 5);
    let cut = infected(SIZE, HALF - 5);
    let late = infected(SIZE, SIZE - 100);
    for (name, content) in [("good", &good), ("cut", &cut), ("late", &late)] {
        fs::write(server.files().join(name), content)?;
    }
    let here = lab.client().dir();
    let url = |name: &str| format!("ftp://alice:secret@192.0.2.2/{name}");
    let address = lab.dial(Family::V4, 21).ip();
    let url = |name: &str| url(name).replace("192.0.2.2", &address.to_string());
    let lftp = |commands: &str| {
        format!(
            "set net:max-retries 1; set net:timeout 20; set xfer:clobber on; open -u alice,secret {address}; {commands}"
        )
    };
    let python = |name: &str| {
        format!(
            "import ftplib,sys\n\
             f=ftplib.FTP('{address}','alice','secret',timeout=30)\n\
             o=open('{name}','ab')\n\
             f.retrbinary('RETR {name}',o.write,rest=o.tell())\n"
        )
    };
    type Command<'a> = Box<dyn Fn(&str) -> Vec<String> + 'a>;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let clients: Vec<(&str, Command<'_>)> = vec![
        ("curl", Box::new(|n| words(&["curl", "-sS", "-C", "-", "-o", n, &url(n)]))),
        ("wget", Box::new(|n| words(&["wget", "-q", "-c", "-t", "2", "-O", n, &url(n)]))),
        ("lftp", Box::new(|n| words(&["lftp", "-c", &lftp(&format!("get -c {n} -o {n}"))]))),
        ("ftplib", Box::new(|n| words(&["/usr/bin/python3", "-c", &python(n)]))),
    ];
    for (client, command) in &clients {
        for (name, content) in [("good", &good), ("cut", &cut), ("late", &late)] {
            let copy = here.join(name);
            fs::write(&copy, &content[..HALF])?;
            let run = lab.client().run(command(name))?;
            let got = fs::read(&copy)?;
            let what = format!("{client} {name}: {run:?}\n{}", server.log());
            if name == "good" {
                ensure!(run.success() && got == good, "{what}");
            } else {
                ensure!(!run.success(), "{what}");
                ensure!(got == content[..HALF], "{} bytes came: {what}", got.len() - HALF);
            }
        }
    }
    // A piece out of the middle, and all pieces at once.
    let range =
        lab.client().run(["curl", "-sS", "-r", "1000000-1999999", "-o", "range", &url("good")])?;
    ensure!(range.success(), "{range:?}");
    ensure!(fs::read(here.join("range"))? == good[1_000_000..2_000_000]);
    for (name, fine) in [("good", true), ("cut", false), ("late", false)] {
        let pieces = lftp(&format!("pget -n 4 {name} -o segmented-{name}"));
        let run = lab.client().run(["lftp", "-c", &pieces])?;
        let got = fs::read(here.join(format!("segmented-{name}"))).unwrap_or_default();
        if fine {
            ensure!(run.success() && got == good, "{run:?}\n{}", server.log());
        } else {
            ensure!(!run.success(), "{run:?}");
            ensure!(!got.windows(6).any(|window| window == &PATTERN[..6]), "{name} came");
        }
    }
    let infected = [("protocol", "ftp"), ("verdict", "infected")];
    // Once found, a file is known by its name and its beginning.
    ensure!(vscan.metrics()?.sum("vscan_objects_total", &infected) >= 2.0);
    Ok(())
}

/// Every position inside of the pattern and around the borders of blocks; every range that is right.
fn a_pattern_cut_at_every_offset_is_found_in_downloads(steering: Steering) -> Result<()> {
    const BLOCK: usize = 65_536;
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &settings(&lab, steering)?)?;
    let mut client = connect(&lab)?;
    for at in [100, BLOCK - 7, 2 * BLOCK - 1] {
        server.put("bad", infected(3 * BLOCK, at));
        for cut in 0..=PATTERN.len() {
            let piece = resume(&mut client, at + cut, "bad")?;
            ensure!(blocked(&piece), "{at}+{cut}: {piece:?}");
        }
    }
    let good = fixtures::random(4 * BLOCK + 500, 3);
    server.put("good", good.clone());
    let whole = client.download("RETR good")?;
    ensure!(whole.data == Some((good.clone(), End::Fin)), "{}", whole.reply);
    let before = server.commands().len();
    let ends = [good.len() - 1, good.len()];
    for at in [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 9, 4 * BLOCK].into_iter().chain(ends) {
        let piece = resume(&mut client, at, "good")?;
        ensure!(piece.data == Some((good[at..].to_vec(), End::Fin)), "{at}: {}", piece.reply);
        ensure!(piece.reply == "226 done\r\n", "{at}: {}", piece.reply);
    }
    // The whole was fetched once: the pieces came alone, from the borders of their blocks on.
    let asked: Vec<String> =
        server.commands().split_off(before).into_iter().map(|(_, command)| command).collect();
    for at in [3 * BLOCK + 9, 4 * BLOCK] {
        let border = format!("REST {}", at / BLOCK * BLOCK);
        ensure!(asked.contains(&border), "no {border}: {asked:?}");
    }
    let scans = vscan.metrics()?.sum("vscan_objects_total", &[("verdict", "clean")]);
    ensure!(scans == 1.0, "{scans} scans");
    let behind = resume(&mut client, good.len() + 1, "good")?;
    ensure!(behind.reply.starts_with("550 good: the restart position"), "{}", behind.reply);
    client.quit()
}

/// What is added to a file is judged together with it, and never reaches the server if that is infected.
fn a_pattern_cut_at_every_offset_is_found_in_uploads(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &settings(&lab, steering)?)?;
    let mut client = connect(&lab)?;
    let bad = infected(5000, 2000);
    for cut in 1..PATTERN.len() {
        let (head, tail) = bad.split_at(2000 + cut);
        server.put("file", head.to_vec());
        let append = client.store("APPE file", tail, Duration::ZERO)?;
        ensure!(append.reply.contains("Piece_Pattern"), "{cut}: {}", append.reply);
        client.control().ask(&format!("REST {}", head.len()), "350")?;
        let store = client.store("STOR file", tail, Duration::ZERO)?;
        ensure!(store.reply.contains("Piece_Pattern"), "{cut}: {}", store.reply);
        ensure!(server.file("file").as_deref() == Some(head), "{cut}: the file was changed");
        // The server keeps what lies behind the piece: the last part is there already.
        let mut with_tail = fixtures::random(2000 + cut, 4);
        with_tail.extend_from_slice(tail);
        server.put("file", with_tail.clone());
        client.control().ask("REST 1", "350")?;
        let store = client.store("STOR file", &bad[1..2000 + cut], Duration::ZERO)?;
        ensure!(store.reply.contains("Piece_Pattern"), "{cut}: {}", store.reply);
        ensure!(server.file("file") == Some(with_tail), "{cut}: the file was changed");
    }
    let good = fixtures::random(300_000, 8);
    for cut in [0, 1, 65_536, 150_000, 299_999, 300_000] {
        let (head, tail) = good.split_at(cut);
        server.put("file", head.to_vec());
        let append = client.store("APPE file", tail, Duration::ZERO)?;
        ensure!(append.reply == "226 stored\r\n", "{cut}: {}", append.reply);
        ensure!(server.file("file").as_deref() == Some(&good[..]), "{cut}: appended wrongly");
        server.put("file", good[..good.len() - 7].to_vec());
        client.control().ask(&format!("REST {cut}"), "350")?;
        let store = client.store("STOR file", tail, Duration::ZERO)?;
        if cut > good.len() - 7 {
            ensure!(store.reply.contains("behind the end"), "{cut}: {}", store.reply);
        } else {
            ensure!(store.reply == "226 stored\r\n", "{cut}: {}", store.reply);
            ensure!(server.file("file").as_deref() == Some(&good[..]), "{cut}: stored wrongly");
        }
    }
    server.remove("new");
    let new = client.store("APPE new", &good, Duration::ZERO)?;
    ensure!(new.reply == "226 stored\r\n" && server.file("new") == Some(good), "{}", new.reply);
    drop(vscan);
    Ok(())
}

/// Each version is clean, and what a client would put together of both is not.
fn pieces_of_two_versions_do_not_meet(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &settings(&lab, steering)?)?;
    let bad = infected(400_000, 200_000);
    let (mut first, mut second) = (bad.clone(), bad.clone());
    first[200_010..].fill(b'x');
    second[..200_010].fill(b'x');
    for at in [200_010, 131_072, 399_000] {
        let mut client = connect(&lab)?;
        server.put("file", first.clone());
        let whole = client.download("RETR file")?;
        ensure!(whole.data == Some((first.clone(), End::Fin)), "{}", whole.reply);
        server.put("file", second.clone());
        let piece = resume(&mut client, at, "file")?;
        ensure!(
            piece.reply.starts_with("550 file: the file changed on the server"),
            "{at}: {}",
            piece.reply
        );
        let got = piece.data.map_or(0, |(data, _)| data.len());
        ensure!(got == 0, "{at}: {got} bytes came");
        // From its beginning it may be had.
        let whole = client.download("RETR file")?;
        ensure!(whole.data == Some((second.clone(), End::Fin)), "{}", whole.reply);
        client.quit()?;
    }
    // A file that grows may be followed.
    let mut client = connect(&lab)?;
    let log = fixtures::random(150_000, 6);
    server.put("log", log[..100_000].to_vec());
    ensure!(client.download("RETR log")?.reply.starts_with("226"));
    server.put("log", log.clone());
    let rest = resume(&mut client, 100_000, "log")?;
    ensure!(rest.data == Some((log[100_000..].to_vec(), End::Fin)), "{}", rest.reply);
    vscan.wait_for_event("anomaly", |event| event["anomaly"]["event"] == "ftp_version_changed")?;
    Ok(())
}

/// With TYPE A the receiver stores other bytes than it gets: both are judged.
fn line_ends_hide_nothing(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &settings(&lab, steering)?)?;
    let wire = |end: &[u8]| {
        let at = PATTERN.iter().position(|&byte| byte == b'\n').unwrap_or_default();
        [b"text\r\n", &PATTERN[..at], end, &PATTERN[at + 1..], b"\r\n"].concat()
    };
    let mut client = connect(&lab)?;
    for end in [&b"\n"[..], b"\r\n", b"\r"] {
        let file = wire(end);
        server.put("bad", file.clone());
        client.control().ask("TYPE A", "200")?;
        let down = client.download("RETR bad")?;
        ensure!(blocked(&down), "{end:?}: {down:?}");
        let up = client.store("STOR up", &file, Duration::ZERO)?;
        ensure!(up.reply.contains("Piece_Pattern"), "{end:?}: {}", up.reply);
        let (head, tail) = file.split_at(file.len() / 2);
        server.put("joined", head.to_vec());
        let up = client.store("APPE joined", tail, Duration::ZERO)?;
        ensure!(up.reply.contains("Piece_Pattern"), "{end:?}: {}", up.reply);
        client.control().ask("REST 5", "350")?;
        ensure!(client.download("RETR bad")?.reply.starts_with("501"), "a piece of a text");
        // As it is, it is another file.
        client.control().ask("TYPE I", "200")?;
        let down = client.download("RETR bad")?;
        ensure!(blocked(&down) == (end == b"\n"), "{end:?}: {down:?}");
    }
    let text = b"a clean text\r\nwith lines\rand others\n".to_vec();
    server.put("good", text.clone());
    client.control().ask("TYPE A", "200")?;
    ensure!(client.download("RETR good")?.data == Some((text, End::Fin)));
    drop(vscan);
    Ok(())
}

/// A drop box: what is there cannot be read, so that what is added cannot be judged.
#[test]
fn an_unreadable_file_is_unscannable() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Vsftpd::start_with(lab.server(), 21, "download_enable=NO\n")?;
    let passes = "[[treat]]\nreason = [\"unsupported\"]\naction = \"pass\"\n";
    for more in ["", passes] {
        let mut settings = settings(&lab, Steering::Nft)?;
        if !more.is_empty() {
            settings = settings.with("", more);
        }
        let vscan = Vscan::start(&lab, &settings)?;
        fs::write(server.files().join("drop"), b"first ")?;
        std::os::unix::fs::chown(server.files().join("drop"), Some(1000), Some(1000)).ok();
        fs::set_permissions(
            server.files().join("drop"),
            std::os::unix::fs::PermissionsExt::from_mode(0o666),
        )?;
        let mut client = connect(&lab)?;
        let add = client.store("APPE drop", b"second", Duration::ZERO)?;
        let bad = client.store("APPE drop", PATTERN, Duration::ZERO)?;
        ensure!(bad.reply.starts_with("550 drop: blocked by vscan"), "{}", bad.reply);
        let now = fs::read(server.files().join("drop"))?;
        if more.is_empty() {
            ensure!(add.reply.contains("cannot be scanned"), "{}", add.reply);
            ensure!(now == b"first ");
        } else {
            ensure!(add.reply.starts_with("226"), "{}", add.reply);
            ensure!(now == b"first second");
        }
        let new = client.store("APPE new", b"a new file", Duration::ZERO)?;
        ensure!(new.reply.starts_with("226"), "{}", new.reply);
        fs::remove_file(server.files().join("new"))?;
        drop(vscan);
    }
    Ok(())
}

/// Real servers take pieces through the gateway as they do without it.
#[test]
fn real_servers_take_pieces() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let address = lab.dial(Family::V4, 21).ip().to_string();
    let vsftpd = Vsftpd::start(lab.server(), 21)?;
    let proftpd = ProFtpd::start(lab.server(), 2121)?;
    let pyftpd = PyFtpd::start(lab.server(), 2122, std::slice::from_ref(&address))?;
    let settings = settings(&lab, Steering::Bpf)?.with("ftp", "ports = [21, 2121, 2122]");
    let _vscan = Vscan::start(&lab, &settings)?;
    let good = fixtures::random(400_000, 12);
    let bad = infected(400_000, 199_990);
    for (port, files) in [(21, vsftpd.files()), (2121, proftpd.files()), (2122, pyftpd.files())] {
        let work = || -> Result<()> {
            let mut client = Client::connect(lab.client(), lab.dial(Family::V4, port), Mode::Epsv)?;
            ensure!(client.upload("file", &good[..200_000])?.reply.starts_with("226"));
            let add = client.store("APPE file", &bad[200_000..], Duration::ZERO)?;
            ensure!(add.reply.starts_with("226"), "half a pattern: {}", add.reply);
            ensure!(client.upload("file", &bad[..200_000])?.reply.starts_with("226"));
            let add = client.store("APPE file", &bad[200_000..], Duration::ZERO)?;
            ensure!(add.reply.contains("Piece_Pattern"), "{}", add.reply);
            ensure!(fs::read(files.join("file"))? == bad[..200_000]);
            client.control().ask("REST 100000", "350")?;
            let put = client.store("STOR file", &good[100_000..], Duration::ZERO)?;
            ensure!(put.reply.starts_with("226"), "{}", put.reply);
            let there = fs::read(files.join("file"))?;
            ensure!(there == [&bad[..100_000], &good[100_000..]].concat(), "{}", there.len());
            for at in [1, 70_000, 399_999] {
                let piece = resume(&mut client, at, "file")?;
                ensure!(piece.data == Some((there[at..].to_vec(), End::Fin)), "{at}: {piece:?}");
            }
            let new = client.store("APPE new", &good, Duration::ZERO)?;
            ensure!(new.reply.starts_with("226"), "{}", new.reply);
            ensure!(fs::read(files.join("new"))? == good);
            client.quit()
        };
        work().with_context(|| format!("port {port}"))?;
    }
    Ok(())
}
