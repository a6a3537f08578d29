//! Logs: fields to the journal under systemd, lines to standard error else.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging up to `level`. A second call has no effect.
pub fn init(level: LevelFilter) {
    let journal = std::env::var_os("JOURNAL_STREAM")
        .and_then(|_| tracing_journald::layer().ok())
        .map(|layer| layer.with_field_prefix(None));
    let stderr = journal.is_none().then(|| {
        tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_target(false)
            .without_time()
    });
    let started = tracing_subscriber::registry()
        .with(level)
        .with(journal)
        .with(stderr)
        .try_init();
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}
