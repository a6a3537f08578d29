//! The service manager: readiness, status, watchdog (sd_notify(3)).
//!
//! Without `NOTIFY_SOCKET` every call does nothing. A manager that does not
//! listen is no error of the daemon.

use sd_notify::NotifyState;
use std::time::Duration;

/// Ready to serve.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// Reloading; follow with [`ready`].
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now().ok());
    send(&states);
}

/// Shutting down.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// Still alive. Call it from the loop itself, so that a hung loop is noticed.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often to call [`alive`]: half of `WATCHDOG_USEC`, if that is set for
/// this process.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2)
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "notifying service manager");
    }
}
