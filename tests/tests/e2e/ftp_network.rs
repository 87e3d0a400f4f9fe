//! FTP and the network: servers that want active mode behind translated addresses, wrong addresses, third hosts, FTPS
//! past the gateway, many sessions at once.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;
use vscan_tests::agent::{Settings, Steering, Vscan};
use vscan_tests::ftp::{Behaviour, Client, Mode, Server};
use vscan_tests::lab::{FAMILIES, Family, Lab, STRICT, Topology, inside_second, outside};
use vscan_tests::peers::{PureFtpd, Vsftpd};
use vscan_tests::raw::{self, End, Peer};
use vscan_tests::{fixtures, on_both, wait};

on_both!(
    active_upstream_announces_the_translated_address,
    data_connections_of_third_hosts_are_refused,
    ftps_passes_by,
    the_kernels_own_ftp_helper_does_no_harm,
);

const LIMIT: Duration = Duration::from_secs(20);

/// Ways in which a client asks for data.
const WAYS: [(Family, Mode); 6] = [
    (Family::V4, Mode::Pasv),
    (Family::V4, Mode::Epsv),
    (Family::V4, Mode::Port),
    (Family::V4, Mode::Eprt),
    (Family::V6, Mode::Epsv),
    (Family::V6, Mode::Eprt),
];

/// Uploads, downloads and lists.
fn works(client: &mut Client) -> Result<()> {
    let file = fixtures::random(70_000, 8);
    let up = client.upload("file", &file)?;
    ensure!(up.reply == "226 stored\r\n", "{}", up.reply);
    let down = client.download("RETR file")?;
    ensure!(down.data == Some((file, End::Fin)) && down.reply == "226 done\r\n", "{}", down.reply);
    let list = client.download("LIST")?;
    ensure!(list.data == Some((b"file\r\n".to_vec(), End::Fin)), "{list:?}");
    let bad = client.upload("bad", &fixtures::eicar())?;
    ensure!(bad.reply.starts_with("550 bad: blocked by vscan"), "{}", bad.reply);
    Ok(())
}

/// The address that a server must call is the one that the dialogue comes from: no table of routes knows it.
fn active_upstream_announces_the_translated_address(steering: Steering) -> Result<()> {
    let lab = Lab::with_firewall(Topology::Masquerade, STRICT)?;
    // Translated to addresses that masquerade would not choose; and between two private networks.
    lab.gateway.sh("ip addr add 192.0.2.77/24 dev wan0\n\
         ip addr add 2001:db8:2::77/64 dev wan0 nodad preferred_lft 0\n\
         ip addr add 10.9.0.1/24 dev wan0")?;
    lab.outside.sh("ip addr add 10.9.0.2/24 dev eth0")?;
    lab.gateway.nft(
        "table inet translation { chain srcnat { type nat hook postrouting priority srcnat - 10;\n\
         oifname wan0 ip daddr 192.0.2.2 tcp dport 21 snat ip to 192.0.2.77\n\
         oifname wan0 ip6 daddr 2001:db8:2::2 tcp dport 21 snat ip6 to 2001:db8:2::77\n}\n}\n",
    )?;
    let behaviour = Behaviour { passive: false, ..Behaviour::default() };
    let server = Server::start(lab.server(), 21, behaviour)?;
    let _vscan = Vscan::start(&lab, &Settings::new(steering))?;
    let private = SocketAddr::from((Ipv4Addr::new(10, 9, 0, 2), 21));
    for (to, wanted) in [
        (lab.dial(Family::V4, 21), "PORT 192,0,2,77,"),
        (lab.dial(Family::V6, 21), "EPRT |2|2001:db8:2::77|"),
        (private, "PORT 10,9,0,1,"),
    ] {
        for mode in [Mode::Epsv, Mode::Eprt] {
            let mut client = Client::connect(lab.client(), to, mode)?;
            works(&mut client).with_context(|| format!("{to} {:#?}", server.commands()))?;
            client.quit()?;
        }
        let commands = server.commands();
        let asked = |(_, command): &&(SocketAddr, String)| command.starts_with(wanted);
        ensure!(commands.iter().filter(asked).count() >= 6, "{wanted}: {commands:#?}");
    }
    Ok(())
}

/// A firewall may follow FTP by itself, on both legs: it reads, and behind NAT rewrites, what we say.
fn the_kernels_own_ftp_helper_does_no_harm(steering: Steering) -> Result<()> {
    for topology in [Topology::Plain, Topology::Masquerade, Topology::Forward] {
        let lab = Lab::with_firewall(topology, STRICT)?;
        for family in ["ip", "ip6"] {
            lab.gateway.nft(&format!(
                "table {family} helper {{\nct helper ftp-standard {{ type \"ftp\" protocol tcp; }}\n\
                 chain prerouting {{ type filter hook prerouting priority filter;\n\
                 tcp dport {{ 21, 2121 }} ct helper set \"ftp-standard\"\n}}\n\
                 chain output {{ type filter hook output priority filter;\n\
                 tcp dport {{ 21, 2121 }} ct helper set \"ftp-standard\"\n}}\n}}\n"
            ))?;
        }
        let usual = Behaviour::default();
        let passive = Server::start(lab.server(), 21, usual)?;
        let active = Server::start(lab.server(), 2121, Behaviour { passive: false, ..usual })?;
        let settings = Settings::new(steering).with("ftp", "ports = [21, 2121]");
        let _vscan = Vscan::start(&lab, &settings)?;
        for (server, port) in [(&passive, 21), (&active, 2121)] {
            for (family, mode) in WAYS {
                let mut client = Client::connect(lab.client(), lab.dial(family, port), mode)?;
                works(&mut client)
                    .with_context(|| format!("{topology:?} {port} {family:?} {mode:?}"))
                    .with_context(|| format!("{:?}", server.commands()))?;
                client.quit()?;
            }
        }
        // It was at work: expect_create in the kernel's statistics, a number for each CPU.
        let created = lab.gateway.sh("awk 'NR > 1 { print $15 }' /proc/net/stat/nf_conntrack")?;
        ensure!(
            created.split_whitespace().any(|count| !count.trim_matches('0').is_empty()),
            "{created}"
        );
    }
    Ok(())
}

/// The address in a 227 is the server's affair: private, none at all, or somebody else's.
#[test]
fn wrong_addresses_and_odd_orders_do_no_harm() -> Result<()> {
    let announced = ["10.200.0.9", "0.0.0.0", "127.0.0.1", "192.0.2.1"];
    let lab = Lab::new(Topology::Plain)?;
    let usual = Behaviour::default();
    let behaviours = announced
        .iter()
        .map(|address| Ok(Behaviour { announced: Some(address.parse()?), ..usual }))
        .chain([
            Ok(Behaviour { epsv: false, ..usual }),
            Ok(Behaviour { early: true, ..usual }),
            Ok(Behaviour { early: true, passive: false, ..usual }),
        ])
        .collect::<Result<Vec<_>>>()?;
    let ports: Vec<u16> = (2121..).take(behaviours.len()).collect();
    let listed = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let settings = Settings::new(Steering::Bpf).with("ftp", &format!("ports = [{listed}]"));
    let _vscan = Vscan::start(&lab, &settings)?;
    for (behaviour, port) in behaviours.into_iter().zip(ports) {
        let server = Server::start(lab.server(), port, behaviour)?;
        for (family, mode) in WAYS {
            // Where the server knows no EPSV, IPv6 has to go active.
            let mut client = Client::connect(lab.client(), lab.dial(family, port), mode)?;
            works(&mut client)
                .with_context(|| format!("{behaviour:?} {family:?} {mode:?}"))
                .with_context(|| format!("{:?}", server.commands()))?;
            client.quit()?;
        }
    }
    Ok(())
}

/// What FXP and bounce attacks need: a data connection with a host that is none of the session's two.
fn data_connections_of_third_hosts_are_refused(steering: Steering) -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let server = Server::start(lab.server(), 21, Behaviour::default())?;
    server.put("file", b"content".to_vec());
    let vscan = Vscan::start(&lab, &Settings::new(steering))?;
    for family in FAMILIES {
        let mut client = Client::connect(lab.client(), lab.dial(family, 21), Mode::Epsv)?;
        // Passive: somebody else comes to the port that was announced to this client.
        let reply = client.control().ask("EPSV", "229")?;
        let port: u16 = reply.split('|').nth(3).context("no port")?.parse()?;
        let to = SocketAddr::new(outside(family), port);
        let second = inside_second(family);
        let heard = lab.client().within(|| {
            let mut stranger = raw::connect(Some(second), to, LIMIT)?;
            stranger.set_read_timeout(Some(LIMIT))?;
            Ok(stranger.read(&mut [0; 16])?)
        });
        // Reset at once, which may come before the attempt is known to have succeeded.
        let cut = heard.as_ref().is_err_and(|error| {
            let error = error.downcast_ref::<std::io::Error>();
            error.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset)
        });
        ensure!(cut, "the stranger was heard: {heard:?}");
        // Its own client still gets through.
        let mut own = lab.client().within(|| raw::connect(None, to, LIMIT))?;
        own.set_read_timeout(Some(LIMIT))?;
        client.control().send("RETR file\r\n")?;
        client.control().expect("150")?;
        let mut content = String::new();
        own.read_to_string(&mut content)?;
        drop(own);
        client.control().expect("226")?;
        ensure!(content == "content");
        // Active: the client names another host, or a port of a service.
        let own = lab.client();
        let address = client.control().stream().local_addr()?.ip();
        let protocol = if family == Family::V4 { 1 } else { 2 };
        let third = own.within(|| Ok(TcpListener::bind((second, 0))?))?;
        let port = third.local_addr()?.port();
        let answer = |control: &mut Peer, host, port| {
            control.ask(&format!("EPRT |{protocol}|{host}|{port}|"), "501 The address must")
        };
        answer(client.control(), second, port)?;
        answer(client.control(), outside(family), 5000)?;
        answer(client.control(), address, 25)?;
        for command in ["LPRT 4,4,10,1,0,3,2,8,1", "LPSV", "CPSV", "SPSV", "SPAS"] {
            client.control().ask(command, "502").context(command)?;
        }
        client.control().ask("RETR file", "425")?;
        third.set_nonblocking(true)?;
        ensure!(third.accept().is_err(), "somebody called the third host");
        client.quit()?;
    }
    let metrics = vscan.metrics()?;
    for (name, count) in [("ftp_data_stranger", 2.0), ("ftp_bounce", 6.0)] {
        let counted = metrics.sum("vscan_anomalies_total", &[("name", name)]);
        ensure!(counted == count, "{name}: {counted}");
    }
    let relayed = |(_, command): &(_, String)| command.contains("LP") || command.contains("CPSV");
    ensure!(!server.commands().iter().any(relayed), "{:?}", server.commands());
    Ok(())
}

/// A key and its certificate for the lab's server, in one file.
fn certificate(lab: &Lab) -> Result<PathBuf> {
    let path = lab.server().dir().join("server.pem");
    lab.server().sh(&format!(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
         -subj /CN=server.example -keyout key.pem -out cert.pem 2>&1\ncat key.pem cert.pem > {}",
        path.display()
    ))?;
    Ok(path)
}

/// FTPS goes past the gateway where it may, data connections and all, and is counted; where it may not, 534 says so.
fn ftps_passes_by(steering: Steering) -> Result<()> {
    for topology in [Topology::Plain, Topology::Masquerade] {
        let lab = Lab::new(topology)?;
        let certificate = certificate(&lab)?;
        let tls = format!(
            "ssl_enable=YES\nallow_anon_ssl=NO\nforce_local_data_ssl=YES\nforce_local_logins_ssl=NO\n\
             require_ssl_reuse=NO\nssl_ciphers=HIGH\nrsa_cert_file={path}\nrsa_private_key_file={path}\n",
            path = certificate.display()
        );
        let vsftpd = Vsftpd::start_with(lab.server(), 21, &tls)?;
        let pureftpd = PureFtpd::start_with(lab.server(), 2122, Some(&certificate))?;
        let settings = Settings::new(steering).with("ftp", "ports = [21, 2122]");
        let vscan = Vscan::start(&lab, &settings)?;
        // Not inspected: even this comes through, so that nobody takes the one for the other.
        let file = [fixtures::eicar(), fixtures::random(300_000, 3)].concat();
        let here = lab.client().dir();
        fs::write(here.join("up"), &file)?;
        let mut sessions = 0.0;
        for (files, port) in [(vsftpd.files(), 21), (pureftpd.files(), 2122)] {
            for family in FAMILIES {
                let curl = |more: &[&str]| {
                    // With TLS 1.3 curl resets an upload's connection whose session tickets it has not read, and vsftpd
                    // calls that broken.
                    let common = ["curl", "-sSgk", "--ssl-reqd", "--tls-max", "1.2"];
                    let user = ["--max-time", "20", "-u", "alice:secret"];
                    lab.client().run([&common[..], &user, more].concat())
                };
                let url = |name: &str| format!("ftp://{}/{name}", lab.dial(family, port));
                let put = curl(&["-T", "up", &url("file")])?;
                ensure!(put.success(), "{topology:?} {port} {family:?}: {put:?}");
                ensure!(fs::read(files.join("file"))? == file, "the upload was changed");
                let get = curl(&["-o", "got", &url("file")])?;
                ensure!(get.success(), "{topology:?} {port} {family:?}: {get:?}");
                ensure!(fs::read(here.join("got"))? == file, "the download was changed");
                sessions += 2.0;
            }
        }
        let passed = [("reason", "tls")];
        wait::until("the TLS sessions are not counted", LIMIT, || {
            let counted = vscan.metrics()?.sum("vscan_flows_uninspected_total", &passed);
            Ok((counted == sessions).then_some(()))
        })
        .with_context(|| vscan.metrics().map(|metrics| metrics.0).unwrap_or_default())?;
        let flows = vscan.flows()?;
        let tls = flows.iter().filter(|flow| flow["uninspected"] == "tls").count();
        ensure!(tls as f64 == sessions, "{flows:#?}");
    }
    let lab = Lab::new(Topology::Plain)?;
    let certificate = certificate(&lab)?;
    let server = PureFtpd::start_with(lab.server(), 21, Some(&certificate))?;
    let settings = Settings::new(steering).with("ftp", "tls = \"refuse\"");
    let _vscan = Vscan::start(&lab, &settings)?;
    fs::write(server.files().join("file"), b"content")?;
    let url = format!("ftp://{}/file", lab.dial(Family::V4, 21));
    let curl = |way| {
        lab.client().run(["curl", "-sSvk", way, "--max-time", "20", "-u", "alice:secret", &url])
    };
    let required = curl("--ssl-reqd")?;
    // CURLE_USE_SSL_FAILED
    ensure!(required.code() == 64 && required.err.contains("< 534 "), "{required:?}");
    let tried = curl("--ssl")?;
    ensure!(tried.success() && tried.out == "content", "{tried:?}");
    Ok(())
}

/// A hundred clients at the same moment, each with files of its own, at a server with a process for each.
#[test]
fn a_hundred_sessions_at_once() -> Result<()> {
    const SESSIONS: usize = 100;
    let lab = Lab::new(Topology::Masquerade)?;
    let server = Vsftpd::start(lab.server(), 21)?;
    fs::write(server.files().join("bad"), fixtures::eicar())?;
    let vscan = Vscan::start(&lab, &Settings::new(Steering::Bpf))?;
    // One after the other: vsftpd lets 32 wait, and is slow to accept.
    let clients = (0..SESSIONS)
        .map(|number| {
            let mode = [Mode::Epsv, Mode::Epsv, Mode::Eprt, Mode::Eprt][number % 4];
            Client::connect(lab.client(), lab.dial(FAMILIES[number % 2], 21), mode)
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(vscan.flows()?.iter().filter(|flow| flow["ended"].is_null()).count() == SESSIONS);
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(number, mut client)| {
                let lab = &lab;
                scope.spawn(move || {
                    lab.client().enter()?;
                    let file = fixtures::random(20_000 + number, number as u64);
                    let name = format!("file-{number}");
                    let up = client.upload_here(&name, &file)?;
                    ensure!(up.reply.starts_with("226"), "{number}: {}", up.reply);
                    let down = client.download_here(&format!("RETR {name}"))?;
                    ensure!(down.data == Some((file, End::Fin)), "{number}: {}", down.reply);
                    let bad = client.download_here("RETR bad")?;
                    ensure!(bad.data.is_none() && bad.reply.contains("EICAR"), "{}", bad.reply);
                    client.quit()
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let metrics = vscan.metrics()?;
    let objects =
        |verdict| metrics.sum("vscan_objects_total", &[("protocol", "ftp"), ("verdict", verdict)]);
    ensure!(objects("clean") == 2.0 * SESSIONS as f64 && objects("infected") == SESSIONS as f64);
    Ok(())
}

/// `vscan flows` shows who moves what and how fast, while it is on its way; the dialogue meanwhile is silent, and the
/// kernel keeps it alive.
#[test]
fn a_transfer_is_shown_while_it_goes_on() -> Result<()> {
    let lab = Lab::new(Topology::Plain)?;
    let _server = Server::start(lab.server(), 21, Behaviour::default())?;
    let vscan = Vscan::start(&lab, &Settings::new(Steering::Bpf))?;
    let mut control = Peer::connect(lab.client(), lab.dial(Family::V4, 21))?;
    control.expect("220")?;
    control.ask("USER mallory\x1b[2J", "331")?;
    control.ask("PASS x", "230")?;
    let port = control.ask("EPSV", "229")?.split('|').nth(3).context("no port")?.parse()?;
    let to = SocketAddr::new(outside(Family::V4), port);
    let mut data = lab.client().within(|| raw::connect(None, to, LIMIT))?;
    control.send(b"STOR new\x07 file\xe9\r\n")?;
    control.expect("150")?;
    data.write_all(&[7; 123_456])?;
    let flow = wait::until("the bytes are not shown", LIMIT, || {
        let flows = vscan.flows()?;
        Ok(flows.into_iter().find(|flow| flow["transfer"]["bytes"] == 123_456))
    })?;
    ensure!(flow["command"] == "STOR" && flow["state"] == "upload", "{flow}");
    ensure!(flow["object"] == "new\u{7} file\\xe9", "{flow}");
    let (rate, seconds) = (flow["transfer"]["rate"].as_f64(), flow["transfer"]["seconds"].as_f64());
    let (rate, seconds) = (rate.context("no rate")?, seconds.context("no time")?);
    ensure!(rate > 0.0 && (rate * seconds - 123_456.0).abs() < 1.0, "{flow}");
    let listing = vscan.cli(&["flows"])?.out;
    for word in ["COMMAND", "STOR", "MOVED", "121K", "RATE", "/s", "mallory"] {
        ensure!(listing.contains(word), "{word} is not shown:\n{listing}");
    }
    ensure!(!listing.contains(['\x1b', '\x07']), "controls reach the terminal: {listing:?}");
    // Once all that was said is acknowledged.
    wait::until("two legs that are kept alive", LIMIT, || {
        let legs = lab.gateway.sh("ss -Htno state established '( dport = :21 or sport = :21 )'")?;
        Ok((legs.matches("timer:(keepalive,").count() == 2).then_some(()))
    })?;
    data.shutdown(std::net::Shutdown::Write)?;
    control.expect("226")?;
    let flows = vscan.flows()?;
    ensure!(flows.iter().all(|flow| flow["transfer"].is_null() && flow["command"].is_null()));
    control.ask("QUIT", "221")?;
    Ok(())
}
