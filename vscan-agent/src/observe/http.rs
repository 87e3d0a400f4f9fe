//! `/metrics` and `/healthz` over HTTP/1.1. Bounded in connections, header sizes and time.

use super::control::Backend;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections at one time; more wait.
const CONNECTIONS_MAX: usize = 32;

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may live; scrapers connect again.
const CONNECTION_MAX: Duration = Duration::from_secs(300);

/// Bytes of a request's head, hyper's least.
const HEAD_MAX: usize = 8 << 10;

/// Serves for ever.
pub async fn serve(listener: TcpListener, backend: Arc<dyn Backend>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                tracing::warn!("metrics listener: {e}");
                // out of descriptors: others have to end first
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let backend = Arc::clone(&backend);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = respond(&request, &*backend);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_MAX)
                .serve_connection(TokioIo::new(stream), service);
            // errors are the client's affair; a connection that lives too long is closed
            let _ = timeout(CONNECTION_MAX, connection).await;
            drop(place);
        });
    }
}

fn respond(request: &Request<Incoming>, backend: &dyn Backend) -> Response<Full<Bytes>> {
    let text = "text/plain; charset=utf-8";
    let reply = |status, kind, body: Vec<u8>| {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        }
        response
    };
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return reply(StatusCode::METHOD_NOT_ALLOWED, text, b"GET or HEAD\n".to_vec());
    }
    match request.uri().path() {
        "/metrics" => {
            backend.refresh();
            let metrics = backend.observer().render_metrics();
            reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics)
        }
        "/healthz" => match backend.health() {
            Ok(()) => reply(StatusCode::OK, text, b"ok\n".to_vec()),
            Err(why) => {
                reply(StatusCode::SERVICE_UNAVAILABLE, text, format!("{why}\n").into_bytes())
            }
        },
        _ => reply(StatusCode::NOT_FOUND, text, b"/metrics and /healthz are here\n".to_vec()),
    }
}
