//! Flow table, events, metrics and the two sockets together.

use super::control::{self, Answer, Backend, Boxed, Request, Status};
use super::*;
use crate::config::{Direction, Protocol, Treatment};
use crate::notify::Notifier;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use vscan_scan::report::{Reason, Report, Verdict};

fn open(protocol: Protocol, client: &str) -> FlowOpen {
    let port = if protocol == Protocol::Ftp { 21 } else { 25 };
    FlowOpen {
        protocol,
        client: client.parse().unwrap(),
        server: SocketAddr::new("192.0.2.1".parse().unwrap(), port),
        real_server: SocketAddr::new("10.0.0.5".parse().unwrap(), port),
        direction: Direction::Outbound,
    }
}

fn infected() -> Report {
    let mut report = Report { verdict: Verdict::Clean, error: None, ..Report::error("") };
    report.add_finding("EICAR_Test_File", "yara", &["a.zip".to_owned()], 0);
    report
}

fn judged<'a>(report: &'a Report, name: &'a [u8], action: Treatment) -> Judged<'a> {
    Judged {
        name,
        kind: "file",
        direction: Direction::Inbound,
        size: 68,
        blake3: "00",
        report,
        action,
        treated: &[],
        rule: "default",
        quarantine: None,
        stored: None,
        seconds: 0.001,
    }
}

struct Log {
    _directory: tempfile::TempDir,
    path: PathBuf,
    observer: Observer,
}

impl Log {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs/events.json");
        let observer = Observer::new(&path).unwrap();
        Self { _directory: directory, path, observer }
    }

    fn events(&self) -> Vec<serde_json::Value> {
        self.observer.events.flush();
        read_events(&self.path)
    }
}

fn read_events(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn one_flow_from_open_to_close() {
    let log = Log::new();
    let flow = log.observer.flows.open(open(Protocol::Ftp, "10.1.0.2:40000"));
    let id = flow.id();
    flow.set_user(b"ann\xff");
    flow.set_state("transfer");
    flow.set_object(b"/pub/eicar.com");
    flow.add_bytes(10, 200);
    flow.judged(&judged(&infected(), b"/pub/eicar.com", Treatment::Block));
    flow.set_object(b"/pub/clean.txt");
    let clean = Report { verdict: Verdict::Clean, error: None, ..Report::error("") };
    flow.judged(&judged(&clean, b"/pub/clean.txt", Treatment::Pass));
    flow.anomaly("line_too_long", "4097 bytes");

    let record = &log.observer.flows.intercepted()[0];
    assert_eq!(record.id, Some(id));
    assert_eq!(record.state, "transfer");
    assert_eq!(record.user.as_deref(), Some("ann\\xff"));
    assert_eq!(record.verdict, Some(Verdict::Infected), "the worst stays");
    assert_eq!(record.object.as_deref(), Some("/pub/eicar.com"), "with its object");
    assert_eq!(record.detection.as_deref(), Some("EICAR_Test_File"));
    assert_eq!((record.bytes_from_client, record.bytes_from_server, record.objects), (10, 200, 2));
    assert_eq!(log.observer.metrics.sessions(), 1);
    drop(flow);
    assert!(log.observer.flows.is_empty());
    assert_eq!(log.observer.metrics.sessions(), 0);
    assert_eq!(log.observer.flows.closed(10)[0].state, "closed");

    let events = log.events();
    let kinds: Vec<_> = events.iter().map(|e| e["event_type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["object", "alert", "object", "anomaly", "flow"]);
    for event in &events {
        assert_eq!(event["flow_id"], id.to_string(), "one through them all");
        assert_eq!((&event["src_ip"], &event["src_port"]), (&"10.1.0.2".into(), &40000.into()));
        assert_eq!((&event["dest_ip"], &event["dest_port"]), (&"192.0.2.1".into(), &21.into()));
        assert_eq!((&event["real_dest_ip"], &event["proto"]), (&"10.0.0.5".into(), &"TCP".into()));
        assert_eq!(event["app_proto"], "ftp");
        let time = event["timestamp"].as_str().unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == 27, "{time}");
    }
    assert_eq!(events[1]["alert"]["signature"], "EICAR_Test_File");
    assert_eq!(events[1]["alert"]["action"], "blocked");
    assert_eq!(events[1]["object"]["name"], "/pub/eicar.com");
    assert_eq!(events[1]["object"]["findings"][0]["path"][0], "a.zip");
    assert_eq!(events[3]["anomaly"]["event"], "line_too_long");
    assert_eq!(events[4]["flow"]["verdict"], "infected");
    assert_eq!(events[4]["flow"]["bytes_toclient"], 200);
}

#[test]
fn many_threads_lose_nothing() {
    let observer = Observer::without_events();
    let threads: usize = 8;
    let each = 500;
    std::thread::scope(|scope| {
        for t in 0..threads {
            let observer = observer.clone();
            scope.spawn(move || {
                for n in 0..each {
                    let flow =
                        observer.flows.open(open(Protocol::Smtp, &format!("10.1.{t}.2:{}", n + 1)));
                    flow.add_bytes(1, 2);
                    assert!(observer.flows.find(flow.id()).is_some());
                    // half are closed by another thread
                    if n % 2 == 0 {
                        std::thread::scope(|s| s.spawn(move || drop(flow)).join().unwrap());
                    }
                }
            });
        }
        let watcher = observer.clone();
        scope.spawn(move || {
            for _ in 0..200 {
                for record in watcher.flows.intercepted() {
                    assert!(record.bytes_from_client <= 1);
                }
            }
        });
    });
    assert!(observer.flows.is_empty());
    let closed = observer.flows.closed(usize::MAX);
    assert_eq!(closed.len(), (threads * each).min(4096));
    let ids: std::collections::HashSet<_> = closed.iter().map(|f| f.id).collect();
    assert_eq!(ids.len(), closed.len());
    let text = String::from_utf8(observer.render_metrics()).unwrap();
    assert!(text.contains("vscan_sessions_total{protocol=\"smtp\"} 4000\n"), "{text}");
    assert!(text.contains("vscan_sessions{protocol=\"smtp\"} 0\n"), "{text}");
    assert!(
        text.contains("vscan_bytes_total{protocol=\"smtp\",sender=\"server\"} 8000\n"),
        "{text}"
    );
}

#[test]
fn closed_flows_are_bounded_and_the_last_ones() {
    let observer = Observer::without_events();
    for n in 0..5000u32 {
        let port = n % 60_000 + 1;
        drop(observer.flows.open(open(Protocol::Ftp, &format!("10.1.0.2:{port}"))));
    }
    let closed = observer.flows.closed(usize::MAX);
    assert_eq!(closed.len(), 4096);
    assert_eq!(closed.last().unwrap().client.port(), 5000);
    assert_eq!(observer.flows.closed(2)[0].client.port(), 4999);
}

/// An idle session has a user and little else.
#[test]
fn an_idle_flow_takes_less_than_a_kibibyte() {
    let observer = Observer::without_events();
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
    };
    let count = 20_000;
    let before = resident();
    let flows: Vec<FlowHandle> = (0..count)
        .map(|_| {
            let flow = observer.flows.open(open(Protocol::Ftp, "10.1.0.2:40000"));
            flow.set_user(b"anonymous");
            flow
        })
        .collect();
    let each = resident().saturating_sub(before) / count;
    assert!(each < 1024, "{each} bytes");
    drop(flows);
}

#[test]
fn names_from_the_wire_are_bounded() {
    let observer = Observer::without_events();
    let flow = observer.flows.open(open(Protocol::Ftp, "10.1.0.2:40000"));
    flow.set_user(&[b'u'; 100_000]);
    flow.set_object(&[0xff; 100_000]);
    let record = &observer.flows.intercepted()[0];
    assert_eq!(record.user.as_ref().unwrap().len(), 320);
    assert_eq!(record.object.as_ref().unwrap().len(), 255 * 4);
}

#[test]
fn tls_counts_as_uninspected_while_it_lasts_and_afterwards() {
    let observer = Observer::without_events();
    let flow = observer.flows.open(open(Protocol::Smtp, "10.1.0.2:40000"));
    flow.set_tls_passed();
    flow.set_tls_passed();
    let metrics = || String::from_utf8(observer.render_metrics()).unwrap();
    assert!(metrics().contains("vscan_flows_uninspected{reason=\"tls\"} 1\n"));
    assert_eq!(observer.flows.intercepted()[0].uninspected.as_deref(), Some("tls"));
    drop(flow);
    assert!(metrics().contains("vscan_flows_uninspected{reason=\"tls\"} 0\n"));
    assert!(metrics().contains(
        "vscan_flows_uninspected_total{direction=\"outbound\",protocol=\"smtp\",reason=\"tls\"} 1\n"
    ));
}

#[test]
fn objects_are_counted_by_verdict_and_each_reason_once() {
    let observer = Observer::without_events();
    let flow = observer.flows.open(open(Protocol::Ftp, "10.1.0.2:40000"));
    let mut report = infected();
    report.verdict = Verdict::Clean;
    report.findings.clear();
    for part in ["a", "b"] {
        report.add_unread(Reason::Encrypted, "", &[part.to_owned()], 0);
    }
    flow.judged(&judged(&report, b"x.zip", Treatment::Quarantine));
    let text = String::from_utf8(observer.render_metrics()).unwrap();
    for line in [
        "vscan_objects_total{action=\"quarantine\",direction=\"inbound\",protocol=\"ftp\",verdict=\"unscannable\"} 1",
        "vscan_object_bytes_total{direction=\"inbound\",protocol=\"ftp\"} 68",
        "vscan_unscannable_total{reason=\"encrypted\"} 1",
        "vscan_build_info{version=\"0.1.0\"} 1",
        "vscan_objects_total{action=\"block\",direction=\"inbound\",protocol=\"smtp\",verdict=\"infected\"} 0",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
    }
    assert!(!text.contains("10.1.0.2"), "no addresses in metrics");
    assert!(
        text.lines()
            .filter(|l| !l.starts_with('#'))
            .all(|l| l.starts_with("vscan_") || l.starts_with("process_"))
    );
}

#[test]
fn a_rotated_log_is_opened_again() {
    let log = Log::new();
    log.observer.events.agent(&serde_json::json!({"n": 1}));
    log.observer.events.flush();
    let rotated = log.path.with_extension("1");
    std::fs::rename(&log.path, &rotated).unwrap();
    log.observer.events.reopen();
    log.observer.events.agent(&serde_json::json!({"n": 2}));
    assert_eq!(log.events().len(), 1);
    assert_eq!(read_events(&rotated).len(), 1);
    // and without being told, within about a second
    std::fs::remove_file(&log.path).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while !log.path.exists() {
        assert!(Instant::now() < until, "not opened again");
        log.observer.events.flush();
    }
    log.observer.events.agent(&serde_json::json!({"n": 3}));
    assert_eq!(log.events()[0]["agent"]["n"], 3);
}

#[test]
fn half_a_line_of_a_crash_spoils_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.json");
    std::fs::write(&path, "{\"half\":").unwrap();
    let observer = Observer::new(&path).unwrap();
    observer.events.agent(&serde_json::json!({"n": 1}));
    observer.events.flush();
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("{\"half\":\n{\"timestamp\""), "{text}");
}

#[test]
fn a_log_that_cannot_be_written_costs_events_and_nothing_else() {
    let observer = Observer::new(Path::new("/dev/full")).unwrap();
    let started = Instant::now();
    for n in 0..20_000 {
        observer.events.agent(&serde_json::json!({ "n": n }));
    }
    assert!(started.elapsed() < Duration::from_secs(5), "the data path does not wait");
    observer.events.flush();
    assert_eq!(observer.metrics.events_lost(), 20_000);
    assert_eq!(
        Observer::new(Path::new("/proc/x/y")).map(|_| ()).unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
}

struct Fake(Observer, Notifier);

impl Backend for Fake {
    fn refresh(&self) {}

    fn notifier(&self) -> &Notifier {
        &self.1
    }

    fn observer(&self) -> &Observer {
        &self.0
    }

    fn status(&self) -> Status {
        Status { steering: "nft".to_owned(), ..Status::of(&self.0) }
    }

    fn senders(&self) -> Vec<crate::outbound::Sender> {
        Vec::new()
    }

    fn unblock(&self, _host: std::net::IpAddr) -> bool {
        false
    }

    fn reload(&self) -> Boxed<'_, Result<(), String>> {
        Box::pin(async { Err("rules.d/x.yar:1: no".to_owned()) })
    }

    fn health(&self) -> Result<(), String> {
        Err("no scanner worker is alive".to_owned())
    }
}

/// A control socket and an HTTP port, served by a runtime of their own.
struct Served {
    observer: Observer,
    directory: tempfile::TempDir,
    http: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Served {
    fn new() -> Self {
        let observer = Observer::without_events();
        let directory = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let backend: Arc<dyn Backend> =
            Arc::new(Fake(observer.clone(), Notifier::in_memory(observer.clone())));
        let path = directory.path().join("control.sock");
        let http = runtime.block_on(async {
            let socket = control::bind(&path).unwrap();
            tokio::spawn(control::serve(socket, Arc::clone(&backend)));
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(http::serve(listener, backend));
            address
        });
        Self { observer, directory, http, _runtime: runtime }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    fn ask(&self, request: &Request) -> Vec<Answer> {
        control::ask(&self.path(), request).unwrap().map(Result::unwrap).collect()
    }

    fn get(&self, request: &str) -> String {
        let mut stream = std::net::TcpStream::connect(self.http).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }
}

#[test]
fn the_control_socket_answers() {
    use std::os::unix::fs::PermissionsExt;
    let served = Served::new();
    assert_eq!(served.path().metadata().unwrap().permissions().mode() & 0o777, 0o660);
    let flow = served.observer.flows.open(open(Protocol::Ftp, "10.1.0.2:40000"));
    drop(served.observer.flows.open(open(Protocol::Smtp, "10.1.0.2:40001")));
    let [Answer::Status(status)] = &served.ask(&Request::Status)[..] else { panic!("no status") };
    assert_eq!((status.sessions, status.sessions_total, &*status.steering), (1, 2, "nft"));
    let answers = served.ask(&Request::Flows { closed: 10, follow: false });
    let [Answer::Flow(first), Answer::Flow(second), Answer::Done] = &answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!((first.protocol, second.id), (Protocol::Smtp, Some(flow.id())));
    assert_eq!(
        served.ask(&Request::Reload),
        [Answer::Error { error: "rules.d/x.yar:1: no".to_owned() }]
    );
    assert!(matches!(
        &served.ask(&Request::Kill { id: first.id.unwrap() })[..],
        [Answer::Error { .. }]
    ));
}

#[test]
fn a_killed_flow_ends_its_task() {
    let served = Served::new();
    let observer = served.observer.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let task = served._runtime.spawn(async move {
        let flow = observer.flows.open(open(Protocol::Ftp, "10.1.0.2:40000"));
        tell.send(flow.share()).unwrap();
        std::future::pending::<()>().await;
    });
    let flow = told.recv().unwrap();
    flow.set_abort(task.abort_handle());
    assert_eq!(served.ask(&Request::Kill { id: flow.id() }), [Answer::Done]);
    assert!(served._runtime.block_on(task).unwrap_err().is_cancelled());
    assert!(served.observer.flows.is_empty());
}

#[test]
fn followers_see_changes_in_order() {
    let served = Served::new();
    let mut answers =
        control::ask(&served.path(), &Request::Flows { closed: 0, follow: true }).unwrap();
    assert_eq!(answers.next().unwrap().unwrap(), Answer::Listed);
    let flow = served.observer.flows.open(open(Protocol::Ftp, "10.1.0.2:40000"));
    let id = flow.id();
    flow.judged(&judged(&infected(), b"x", Treatment::Block));
    drop(flow);
    for expected in [Change::Opened, Change::Judged, Change::Closed] {
        let Answer::Change(change) = answers.next().unwrap().unwrap() else { panic!("no change") };
        assert_eq!((change.change, change.flow.id), (expected, Some(id)));
    }
}

#[test]
fn nonsense_on_the_control_socket_is_answered() {
    let served = Served::new();
    for (text, expected) in [
        ("{}\n".to_owned(), "not a request"),
        ("{\"request\":\"kill\",\"id\":\"../x\"}\n".to_owned(), "not a request"),
        (format!("{}\n", "x".repeat(100_000)), "not a request"),
        (String::new(), "not a request"),
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(served.path()).unwrap();
        // the other side stops reading at its limit
        let _ = stream.write_all(text.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        // what was not read of a long request resets the connection behind the answer
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.contains(expected) || text.len() > 10_000, "{answer}");
    }
    assert!(matches!(served.ask(&Request::Status)[..], [Answer::Status(_)]));
}

#[test]
fn a_second_agent_does_not_take_the_socket_and_a_dead_one_leaves_it() {
    let served = Served::new();
    let path = served.path();
    served._runtime.block_on(async {
        let error = control::bind(&path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
        let dead = served.directory.path().join("dead.sock");
        drop(control::bind(&dead).unwrap());
        assert!(dead.exists());
        control::bind(&dead).unwrap();
    });
    assert!(matches!(served.ask(&Request::Status)[..], [Answer::Status(_)]));
}

#[test]
fn metrics_and_health_over_http() {
    let served = Served::new();
    let close = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let metrics = served.get(&format!("GET /metrics {close}"));
    assert!(metrics.starts_with("HTTP/1.1 200 OK\r\n"), "{metrics}");
    assert!(metrics.contains("content-type: text/plain; version=0.0.4"));
    assert!(metrics.contains("\nvscan_build_info{"));
    let health = served.get(&format!("GET /healthz {close}"));
    assert!(
        health.starts_with("HTTP/1.1 503 ") && health.ends_with("no scanner worker is alive\n")
    );
    assert!(served.get(&format!("GET / {close}")).starts_with("HTTP/1.1 404 "));
    assert!(served.get(&format!("POST /metrics {close}")).starts_with("HTTP/1.1 405 "));
    assert!(served.get(&format!("HEAD /metrics {close}")).ends_with("\r\n\r\n"));
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let mut stream = std::net::TcpStream::connect(served.http).unwrap();
    // refused while it is still being sent
    let _ = stream.write_all(long.as_bytes());
    let mut response = String::new();
    let _ = stream.read_to_string(&mut response);
    assert!(response.is_empty() || response.starts_with("HTTP/1.1 431 "), "{response}");
}

/// Alerts and dashboard name only metrics that exist, with label names that exist.
#[test]
fn what_is_shipped_for_prometheus_is_true() {
    let observer = Observer::without_events();
    observer.metrics.anomaly_without_flow("x");
    observer.metrics.scanned(0.1, 1);
    observer.metrics.meter.passed_unplaced(Blind::AgentDown, 1);
    observer.metrics.tls.failed(Protocol::Smtp, Side::Server);
    let leg = TlsLeg {
        version: "TLSv1.3".to_owned(),
        cipher: "TLS13_AES_256_GCM_SHA384".to_owned(),
        resumed: false,
    };
    let record = TlsRecord { client: Some(leg), ..TlsRecord::default() };
    observer.metrics.tls.opened(Protocol::Smtp, &record);
    observer.metrics.tls.set_expiries(&[crate::tls::Age {
        file: "mx.pem".to_owned(),
        names: Vec::new(),
        not_before: 0,
        not_after: 1,
    }]);
    let flow = observer.flows.open(open(Protocol::Ftp, "10.1.0.2:40000"));
    let mut report = infected();
    report.add_unread(Reason::Size, "", &[], 0);
    flow.judged(&judged(&report, b"x", Treatment::Block));
    let exposed = String::from_utf8(observer.render_metrics()).unwrap();
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map(str::to_owned).collect()
    };
    let exposed_words: std::collections::HashSet<String> = words(&exposed).into_iter().collect();
    let mut seen = 0;
    for file in [
        include_str!("../../../deploy/prometheus/vscan.rules.yml"),
        include_str!("../../../deploy/grafana/vscan.json"),
    ] {
        for word in words(file) {
            let metric = word.starts_with("vscan_") || word.starts_with("process_");
            assert!(!metric || exposed_words.contains(&word), "{word} is no metric");
            seen += usize::from(metric);
        }
    }
    assert!(seen > 25, "{seen}");
    for label in [
        "protocol",
        "reason",
        "verdict",
        "action",
        "direction",
        "cause",
        "sender",
        "where",
        "result",
        "name",
    ] {
        assert!(exposed.contains(&format!("{label}=\"")), "{label} is no label");
    }
}
