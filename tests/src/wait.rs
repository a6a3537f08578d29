//! Waiting for a condition, always with a deadline and never a bare sleep.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// How long anything that should happen "at once" may take before a test
/// fails: generous, because it is only ever waited out by a failing test.
/// Six times longer in an emulated VM.
#[must_use]
pub fn patience() -> Duration {
    let seconds = if crate::require::in_vm() { 60 } else { 10 };
    Duration::from_secs(seconds)
}

/// Looks at `probe` until it returns a value.
///
/// # Errors
/// Names `what` was waited for, and for how long, once `limit` has passed.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s for {what}", limit.as_secs_f32());
        }
        std::thread::sleep(PAUSE);
    }
}

/// [`until`] for a condition without a value, within [`patience`].
///
/// # Errors
/// As [`until`].
pub fn until_true(what: &str, mut probe: impl FnMut() -> bool) -> Result<()> {
    until(what, patience(), || probe().then_some(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_named() {
        let error = until("the moon", Duration::ZERO, || None::<()>).unwrap_err();
        assert!(error.to_string().contains("the moon"), "{error}");
    }

    #[test]
    fn the_value_of_the_first_success_is_returned() {
        let mut looks = 0;
        let value = until("three looks", Duration::from_secs(5), || {
            looks += 1;
            (looks == 3).then_some("seen")
        });
        assert_eq!(value.unwrap(), "seen");
    }
}
