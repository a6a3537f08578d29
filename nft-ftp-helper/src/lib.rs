//! Userspace conntrack helper for FTP.

pub mod core;
