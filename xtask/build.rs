//! Hands the target triple to the program: cargo tells it to build scripts
//! only.

fn main() {
    let target = std::env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=XTASK_TARGET={target}");
    println!("cargo::rerun-if-changed=build.rs");
}
