//! One object's report: what the scanner finds, and what types and names alone say.

use super::Gateway;
use crate::{config::Config, policy::types, scanner::Job};
use vscan_scan::report::Report;

impl Gateway {
    /// Has an object scanned, and adds what is forbidden of it.
    pub(super) async fn scan(&self, config: &Config, job: Job) -> Report {
        let name = job.name.clone().unwrap_or_default();
        let mut report = self.scanner.scan(job, config.scan.deadline).await;
        types::judge(&config.types.forbid, name.as_bytes(), &mut report);
        report
    }
}
