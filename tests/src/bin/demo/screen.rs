//! What the demo's screen looks like.

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
