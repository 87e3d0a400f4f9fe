//! The driver over loopback sockets, with a scripted server, a client that is driven line by line,
//! and a scanner that knows one pattern. Needs CAP_NET_RAW, as the driver itself does.

mod peers;

use super::*;
use crate::gateway::heard_no_more;
use peers::{Behaviour, Client, INFECTED, Peers, pattern};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Files of this size take each way through the spool: heap, memfd, disk.
const SIZES: [usize; 4] = [0, 10_000, 3_000_000, 12_000_000];

#[tokio::test(flavor = "multi_thread")]
async fn clean_files_pass_unchanged_both_ways() {
    let mut peers = Peers::start(Behaviour::default()).await;
    let mut client = peers.login().await;
    for size in SIZES {
        let file = pattern(size);
        for active in [false, true] {
            let reply = client.store("up.bin", &file, active).await;
            assert_eq!(reply, "226 stored up.bin", "{size}, active {active}");
            assert!(peers.stored("up.bin") == Some(file.clone()), "{size}: bytes differ");
            let (data, reply) = client.retrieve("up.bin", active).await;
            assert_eq!(reply, "226 sent", "{size}, active {active}");
            assert!(data == Some(file.clone()), "{size}: bytes differ");
        }
    }
    assert_eq!(client.command("QUIT").await, "221 bye");
    assert_eq!(client.line().await, None);
    drop(client);
    peers.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn infected_files_reach_nobody_and_the_session_goes_on() {
    let mut peers = Peers::start(Behaviour::default()).await;
    for size in [100, 3_000_000] {
        let mut file = pattern(size);
        file.extend_from_slice(INFECTED);
        peers.put("bad.bin", &file);
        let mut client = peers.login().await;
        let (data, reply) = client.retrieve("bad.bin", false).await;
        assert_eq!((data, &reply[..]), (None, "550 bad.bin: blocked by vscan: Test.Pattern"));
        let reply = client.store("new.bin", &file, true).await;
        assert_eq!(reply, "550 new.bin: blocked by vscan: Test.Pattern");
        assert_eq!(peers.stored("new.bin"), None);
        assert!(!peers.heard().iter().any(|line| line.starts_with("STOR")));
        assert_eq!(client.command("NOOP").await, "200 ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_types_and_listings_are_spliced() {
    let mut peers = Peers::start(Behaviour::default()).await;
    let mut file = pattern(5_000_000);
    file.extend_from_slice(INFECTED);
    peers.put("disk.iso", &file);
    let mut client = peers.login().await;
    for active in [false, true] {
        let (data, reply) = client.retrieve("disk.iso", active).await;
        assert_eq!(reply, "226 sent");
        assert!(data == Some(file.clone()), "bytes differ");
        assert_eq!(client.store("copy.iso", &file, active).await, "226 stored copy.iso");
        assert!(peers.stored("copy.iso") == Some(file.clone()), "bytes differ");
        let (listing, reply) = client.transfer("LIST", active).await;
        assert_eq!(reply, "226 sent");
        assert!(String::from_utf8(listing.unwrap()).unwrap().contains("disk.iso\r\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_passive_mode_is_reached_actively() {
    let mut peers = Peers::start(Behaviour { passive: false, ..Behaviour::default() }).await;
    let mut client = peers.login().await;
    let file = pattern(100_000);
    for active in [false, true] {
        assert_eq!(client.store("a", &file, active).await, "226 stored a");
        let (data, reply) = client.retrieve("a", active).await;
        assert_eq!(reply, "226 sent");
        assert!(data == Some(file.clone()), "bytes differ");
    }
    assert!(peers.heard().iter().any(|line| line.starts_with("PORT 127,0,0,1,")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_looks_broken() {
    let mut peers = Peers::start(Behaviour { breaks_off: true, ..Behaviour::default() }).await;
    for name in ["whole.bin", "whole.iso"] {
        peers.put(name, &pattern(3_000_000));
        let mut client = peers.login().await;
        let (data, reply) = client.retrieve(name, false).await;
        assert_eq!(data, None, "{name}: an orderly end of data");
        assert_eq!(reply, "426 broken off", "{name}");
        assert_eq!(client.command("NOOP").await, "200 ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_mid_transfer_leaves_no_file() {
    for name in ["cut.bin", "cut.iso"] {
        let mut peers = Peers::start(Behaviour::default()).await;
        let mut client = peers.login().await;
        let data = client.begin_store(name).await;
        drop(client);
        peers.ended().await;
        drop(data);
        assert_eq!(peers.stored(name), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_leaves_no_file() {
    for name in ["cut.bin", "cut.iso"] {
        let mut peers = Peers::start(Behaviour::default()).await;
        let mut client = peers.login().await;
        let data = client.begin_store(name).await;
        net::abort(data);
        let reply = client.line().await.unwrap();
        assert!(reply.starts_with("426"), "{name}: {reply}");
        assert_eq!(client.command("NOOP").await, "200 ok");
        assert_eq!(peers.stored(name), None, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_over_hold_max_is_refused_in_both_directions() {
    let mut peers = Peers::start(Behaviour::default()).await;
    let file = pattern(peers::HOLD_MAX as usize + 1);
    peers.put("large.bin", &file);
    let mut client = peers.login().await;
    let (data, reply) = client.retrieve("large.bin", false).await;
    assert_eq!(data, None);
    assert!(reply.starts_with("550 large.bin: blocked by vscan: cannot be scanned"), "{reply}");
    let reply = client.store("new.bin", &file, false).await;
    assert!(reply.starts_with("550 new.bin: blocked by vscan: cannot be scanned"), "{reply}");
    assert_eq!(client.command("NOOP").await, "200 ok");
    assert_eq!(peers.stored("new.bin"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn data_connections_that_the_client_never_closes_are_few() {
    let mut peers = Peers::start(Behaviour::default()).await;
    let mut client = peers.login().await;
    peers.put("small", b"small");
    let mut kept = Vec::new();
    for _ in 0..70 {
        let to = client.passive().await;
        let mut data = TcpStream::connect(to).await.unwrap();
        assert!(client.command("RETR small").await.starts_with("150 "));
        let mut small = [0; 5];
        data.read_exact(&mut small).await.unwrap();
        assert_eq!(client.line().await.unwrap(), "226 sent");
        kept.push(data);
    }
    // The oldest is cut, the youngest is left in peace.
    assert!(kept[69].write_all(b"x").await.is_ok());
    assert!(kept[0].writable().await.is_ok());
    assert!(kept[0].take_error().unwrap().is_some() || kept[0].write_all(b"x").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_get_the_data_channel() {
    let mut peers = Peers::start(Behaviour::default()).await;
    peers.put("a", b"secret");
    let mut client = peers.login().await;
    let address = client.passive().await;
    let stranger = peers::connect_from("127.0.0.9", address).await;
    let mut own = tokio::net::TcpStream::connect(address).await.unwrap();
    client.send("RETR a").await;
    assert_eq!(client.line().await.unwrap(), "150 coming");
    assert_eq!(peers::read_all(&mut own).await, Some(b"secret".to_vec()));
    assert_eq!(client.line().await.unwrap(), "226 sent");
    if let Ok(mut stranger) = stranger {
        assert_eq!(peers::read_all(&mut stranger).await, None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_urgent_abor_stops_a_download() {
    let mut peers = Peers::start(Behaviour::default()).await;
    peers.put("a", &pattern(peers::HOLD_MAX as usize));
    let mut client = peers.login().await;
    let address = client.passive().await;
    let mut data = tokio::net::TcpStream::connect(address).await.unwrap();
    assert_eq!(client.command("RETR a").await, "150 coming");
    // Nobody reads the data, so the transfer is still going on. The last byte is the urgent one:
    // a read of the gateway ends before it.
    client.write_urgent(b"ABOR\r\n");
    assert_eq!(client.line().await.unwrap(), "426 Connection closed; transfer aborted.");
    assert_eq!(client.line().await.unwrap(), "226 ABOR command successful.");
    assert_eq!(peers::read_all(&mut data).await, None);
    client.write_urgent(b"\xff\xf4\xff");
    client.write(b"\xf2NOOP\r\n").await;
    assert_eq!(client.line().await.unwrap(), "200 ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_means_421() {
    let mut peers = Peers::start(Behaviour::default()).await;
    peers.stop_server().await;
    let mut client = Client::new(peers.connect().await);
    let reply = client.line().await.unwrap();
    assert!(reply.starts_with("421 The server cannot be reached"), "{reply}");
    assert_eq!(client.line().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_no_answers_is_heard_no_more() {
    let mut peers = Peers::start(Behaviour::default()).await;
    let client = peers.connect().await;
    // Answered by the gateway itself.
    heard_no_more(&client, b"APPE x\r\n").await;
    net::abort(client);
    peers.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_idle_sessions_with_421() {
    let mut peers = Peers::start(Behaviour::default()).await;
    let mut client = peers.login().await;
    peers.gateway.drain();
    assert_eq!(client.line().await.unwrap(), "421 Service is shutting down.");
    assert_eq!(client.line().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_passes_and_only_tls() {
    let mut peers = Peers::start(Behaviour::default()).await;
    let mut client = peers.login().await;
    assert_eq!(client.command("AUTH TLS").await, "234 go");
    // The scripted server echoes what follows.
    client.write(b"\x16\x03\x01hello").await;
    assert_eq!(client.read_exact(8).await, b"\x16\x03\x01hello");
    client.write(b"more").await;
    assert_eq!(client.read_exact(4).await, b"more");
    assert_eq!(peers.gateway.observer.flows.intercepted()[0].state, "tls");
    drop(client);
    peers.ended().await;

    let mut client = peers.login().await;
    assert_eq!(client.command("AUTH TLS").await, "234 go");
    client.write(b"STOR x\r\n").await;
    assert_eq!(client.line().await, None);
    peers.ended().await;
}
