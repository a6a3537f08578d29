//! What the demo's screen looks like.

use anyhow::Result;

/// A heading.
pub fn title(text: &str) {
    println!("\n{text}");
}

/// Something that has just been checked.
pub fn checked(text: &str) {
    println!("  ok  {text}");
}

/// A detail of the line above, checked as well.
pub fn detail(name: &str, text: &str) {
    println!("      {name:<12} {text}");
}

/// What ended the demo.
pub fn failed(error: &anyhow::Error) {
    println!("FAILED  {error:#}");
}

/// Details of a step: names and texts.
pub type Details = Vec<(&'static str, String)>;

/// What becomes of a step that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It ends the demo.
    Ends,
    /// It is reported, and the story goes on.
    IsTold,
}

/// The steps of a story and how they went.
pub struct Steps {
    failure: Failure,
    /// What was to be, and in the end what was in the way.
    rows: Vec<(String, Option<String>)>,
}

impl Steps {
    /// None yet.
    pub fn new(failure: Failure) -> Self {
        Self {
            failure,
            rows: Vec::new(),
        }
    }

    /// Takes a step without which there is no story.
    pub fn must(&mut self, what: &str, step: impl FnOnce() -> Result<Details>) -> Result<()> {
        let failure = std::mem::replace(&mut self.failure, Failure::Ends);
        let done = self.step(what, step);
        self.failure = failure;
        done
    }

    /// Takes a step, and prints how it went.
    pub fn step(&mut self, what: &str, step: impl FnOnce() -> Result<Details>) -> Result<()> {
        let done = step();
        let reason = done.as_ref().err().map(|error| {
            let text = format!("{error:#}");
            text.lines().next().unwrap_or_default().to_owned()
        });
        self.rows.push((what.to_owned(), reason));
        match done {
            Ok(details) => {
                checked(what);
                for (name, text) in details {
                    detail(name, &text);
                }
                Ok(())
            }
            Err(error) if self.failure == Failure::Ends => Err(error.context(what.to_owned())),
            Err(error) => {
                println!("  NO  {what}");
                for line in format!("{error:#}").lines() {
                    detail("", line);
                }
                Ok(())
            }
        }
    }

    /// The table of all steps, if some may have failed.
    pub fn table(&self, name: &str) {
        if self.failure == Failure::Ends {
            return;
        }
        title(&format!("what worked with {name}"));
        for (what, reason) in &self.rows {
            println!("  {}  {what}", reason.as_ref().map_or("yes", |_| "NO "));
            if let Some(reason) = reason {
                detail("", reason);
            }
        }
        let failed = self.rows.iter().filter(|(_, reason)| reason.is_some());
        println!("{} of {} steps failed", failed.count(), self.rows.len());
    }
}
