//! Drives the FTP session machine on real sockets.

use super::{Accepted, Gateway, refuse};
use crate::observe::FlowHandle;
use std::sync::Arc;

/// Serves one FTP session to its end.
pub async fn run(_gateway: &Arc<Gateway>, conn: Accepted, flow: FlowHandle) {
    refuse(conn.client, flow.opened().protocol, "not available").await;
}
