//! userspace conntrack helper for FTP.
