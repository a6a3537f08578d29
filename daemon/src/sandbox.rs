//! Giving up what a daemon no longer needs, once it has started.

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use thiserror::Error;

/// A restriction that could not be put in place.
#[derive(Debug, Error)]
pub enum Error {
    /// Capabilities.
    #[error("dropping capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// `PR_SET_NO_NEW_PRIVS`.
    #[error("setting no-new-privileges: {0}")]
    NoNewPrivileges(#[from] nix::Error),
    /// Core files.
    #[error("forbidding core files: {0}")]
    Memory(nix::Error),
    /// Seccomp.
    #[error("restricting system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// Seccomp, for an architecture it does not know.
    #[error("restricting system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// Landlock.
    #[error("restricting file access: {0}")]
    Landlock(#[from] landlock::RulesetError),
}

/// Whether this process may configure the network.
pub fn has_net_admin() -> bool {
    caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN).unwrap_or(false)
}

/// Keeps `CAP_NET_ADMIN` alone, for this process and whatever it starts,
/// and forbids gaining privileges by executing a file.
///
/// # Errors
/// [`Error`] if the kernel refuses.
pub fn keep_net_admin_only() -> Result<(), Error> {
    nix::sys::prctl::set_no_new_privs()?;
    let keep = CapsHashSet::from([Capability::CAP_NET_ADMIN]);
    caps::clear(None, CapSet::Ambient)?;
    // Without CAP_SETPCAP the bounding set can't shrink; it only matters to
    // executed files, and no-new-privileges covers those.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for cap in caps::read(None, CapSet::Bounding)?.difference(&keep) {
            caps::drop(None, CapSet::Bounding, *cap)?;
        }
    }
    let held = caps::read(None, CapSet::Permitted)?;
    let kept: CapsHashSet = held.intersection(&keep).copied().collect();
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Permitted, &kept)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    Ok(())
}

/// Keeps memory, keys included, out of core files and away from other
/// processes of the same user, tracers included. Before secrets are read.
///
/// # Errors
/// [`Error`] if the kernel refuses.
pub fn hide_memory() -> Result<(), Error> {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(Error::Memory)?;
    nix::sys::prctl::set_dumpable(false).map_err(Error::Memory)
}

/// Which files a daemon may still touch.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Files and directories to read.
    pub read: Vec<PathBuf>,
    /// Directories in which it makes and removes sockets and files.
    pub write: Vec<PathBuf>,
}

/// How far the kernel enforces a restriction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforced {
    /// All of it, or all this kernel knows.
    Yes,
    /// The kernel has no Landlock.
    No,
}

/// Limits file access to `files` (Landlock), as far as the kernel can. Paths
/// that do not exist are left out.
///
/// # Errors
/// [`Error`] if the kernel knows Landlock and refuses.
pub fn restrict_files(files: &Files) -> Result<Enforced, Error> {
    let abi = ABI::V3;
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .create()?;
    let grants = files
        .read
        .iter()
        .map(|path| (path, AccessFs::from_read(abi)))
        .chain(files.write.iter().map(|p| (p, AccessFs::from_all(abi))));
    for (path, access) in grants {
        if let Ok(fd) = PathFd::new(path) {
            let access = if path.is_dir() {
                access
            } else {
                access & AccessFs::from_file(abi)
            };
            ruleset = ruleset.add_rule(PathBeneath::new(fd, access))?;
        }
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::NotEnforced => Enforced::No,
        _ => Enforced::Yes,
    })
}

/// Limits system calls of this thread and those it starts later to what the
/// daemons were seen to need (strace(1) over start, traffic, reload and stop)
/// and what the C library uses in their place; anything else is `EPERM`.
/// Executing files, new processes, tracing, mounting, loading modules, new
/// namespaces and raw or packet sockets are not among them.
///
/// # Errors
/// [`Error`] if the kernel has no seccomp filters.
pub fn restrict_syscalls() -> Result<(), Error> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        SYSCALLS.iter().map(|call| (*call, Vec::new())).collect();
    let domains = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let sockets = domains
        .into_iter()
        .map(|domain| {
            let domain = u64::from(domain.unsigned_abs());
            SeccompRule::new(vec![SeccompCondition::new(
                0,
                SeccompCmpArgLen::Dword,
                SeccompCmpOp::Eq,
                domain,
            )?])
        })
        .collect::<Result<_, BackendError>>()?;
    rules.insert(libc::SYS_socket, sockets);
    // A thread in the namespaces there are, never a process.
    let thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(NEW_NAMESPACES | THREAD),
        THREAD,
    )?;
    rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![thread])?]);
    // Its flags lie in memory, where no filter sees them: without it the C
    // library takes clone.
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    install(clone3, SeccompAction::Allow, absent)?;
    // Last: installing filters is not in the list.
    let refused = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    install(rules, refused, SeccompAction::Allow)
}

/// `CLONE_NEW*` (linux/sched.h), `CLONE_NEWTIME` aside, which clone takes for
/// a signal number.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
/// `CLONE_THREAD` (linux/sched.h).
const THREAD: u64 = 0x0001_0000;

fn install(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<(), Error> {
    let arch = std::env::consts::ARCH.try_into()?;
    let program: BpfProgram = SeccompFilter::new(rules, otherwise, listed, arch)?.try_into()?;
    seccompiler::apply_filter(&program)?;
    Ok(())
}

/// What daemons do after their start, `socket` and `clone` in part.
pub const SYSCALLS: &[i64] = &[
    // Sockets. `socket` itself is limited by family.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // Descriptors and events.
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_lseek,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
    // Files: reloading the configuration, removing sockets. Landlock says
    // which.
    libc::SYS_fstat,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    // Threads, signals, time, what we are.
    libc::SYS_capget,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_membarrier,
    libc::SYS_nanosleep,
    libc::SYS_prctl,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_umask,
    libc::SYS_uname,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own: the filter stays with it.
    #[test]
    fn a_restricted_thread_can_not_break_out() {
        let attempts = std::thread::spawn(|| {
            restrict_syscalls().unwrap();
            let exec = std::process::Command::new("/bin/true").status();
            let raw = nix::sys::socket::socket(
                nix::sys::socket::AddressFamily::Packet,
                nix::sys::socket::SockType::Raw,
                nix::sys::socket::SockFlag::empty(),
                None,
            );
            let udp = std::net::UdpSocket::bind("127.0.0.1:0");
            let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
            let trace = nix::sys::ptrace::attach(nix::unistd::Pid::parent());
            let thread = std::thread::spawn(|| 7).join();
            let refused = [raw.err(), unshared.err(), trace.err()];
            (exec.err(), refused, udp.is_ok(), thread.ok())
        });
        let (exec, refused, udp, thread) = attempts.join().unwrap();
        assert!(exec.is_some());
        assert_eq!(refused, [Some(nix::errno::Errno::EPERM); 3]);
        assert!(udp);
        assert_eq!(thread, Some(7));
    }

    #[test]
    fn a_restricted_thread_reads_only_what_is_granted() {
        let granted = tempfile::tempdir().unwrap();
        let denied = tempfile::tempdir().unwrap();
        for dir in [&granted, &denied] {
            std::fs::write(dir.path().join("file"), "text").unwrap();
        }
        let files = Files {
            read: vec![granted.path().to_owned()],
            write: Vec::new(),
        };
        let (granted_file, denied_file) = (granted.path().join("file"), denied.path().join("file"));
        let outcome = std::thread::spawn(move || {
            nix::sys::prctl::set_no_new_privs().unwrap();
            let enforced = restrict_files(&files).unwrap();
            let read = std::fs::read(granted_file);
            let written = std::fs::write(files.read.first().unwrap().join("file"), "x");
            (enforced, read, std::fs::read(denied_file), written)
        });
        let (enforced, read, denied, written) = outcome.join().unwrap();
        assert_eq!(read.unwrap(), b"text");
        if enforced == Enforced::Yes {
            assert!(denied.is_err());
            assert!(written.is_err());
        } else {
            // Nothing to check without Landlock; the caller logs it.
            assert!(denied.is_ok());
        }
    }
}
