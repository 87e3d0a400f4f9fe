//! Where the log goes: text or JSON lines on standard error, or lines with syslog priorities for the journal.

use crate::config::{Log, LogFormat};
use std::fmt;
use std::io::{self, IsTerminal};
use std::os::linux::fs::MetadataExt;
use std::sync::OnceLock;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts the log of this process. The environment variable `VSCAN_LOG` has precedence over the configured level.
///
/// Later calls change nothing; see [`set_level`].
pub fn init(log: &Log) {
    let level = std::env::var("VSCAN_LOG").unwrap_or_else(|_| log.level.clone());
    let (filter, handle) = reload::Layer::new(filter(&level));
    if FILTER.set(handle).is_err() {
        return;
    }
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let format = match log.format {
        LogFormat::Auto if stderr_is_journal() => LogFormat::Journal,
        LogFormat::Auto => LogFormat::Text,
        other => other,
    };
    let result = match format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init(),
        LogFormat::Journal => {
            let plain = Format::default().without_time().with_level(false).with_ansi(false);
            registry.with(layer.with_ansi(false).event_format(Prioritised(plain))).try_init()
        }
        LogFormat::Text | LogFormat::Auto => {
            registry.with(layer.with_ansi(io::stderr().is_terminal())).try_init()
        }
    };
    // a test has its own subscriber
    let _ = result;
}

/// Changes what is logged, for a reload.
pub fn set_level(level: &str) {
    if let Some(handle) = FILTER.get() {
        let _ = handle.reload(filter(level));
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Whether standard error is the journal's stream: systemd.exec(5), `$JOURNAL_STREAM` is `DEVICE:INODE`.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stream == format!("{}:{}", stderr.st_dev(), stderr.st_ino())
}

/// Lines that begin with their priority, `<6>`, as the journal reads them: sd-daemon(3).
struct Prioritised(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        // a line without a priority would be logged as one of its own
        for line in text.trim_end().lines() {
            writeln!(writer, "<{priority}>{line}")?;
        }
        Ok(())
    }
}
