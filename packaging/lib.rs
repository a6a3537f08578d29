//! The Debian package: there is no code here, only what cargo-deb reads. See
//! `cargo xtask deb`.
