//! System calls made from inside another process, to see what its sandbox
//! lets it do: the process is stopped, its registers are set to a call, one
//! instruction is executed, and everything is put back.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// `syscall` of x86-64.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// How far below the stack pointer arguments are put: well below what the
/// process may use without moving it.
const BELOW: u64 = 8192;
/// Room for one argument.
const ROOM: usize = 256;

/// An argument of a system call.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// A number.
    Number(u64),
    /// The address of these bytes, in the process's own memory.
    Bytes(&'a [u8]),
}

/// A process that stands still.
#[derive(Debug)]
pub struct Inside {
    pid: Pid,
    memory: File,
    saved: libc::user_regs_struct,
}

impl Inside {
    /// Stops a thread while it waits in a system call. Must be dropped by the
    /// thread that made it.
    ///
    /// # Errors
    /// It is gone, or never waits.
    pub fn stop(tid: u32) -> Result<Self> {
        let pid = Pid::from_raw(tid.try_into()?);
        for _ in 0..50 {
            if let Some(inside) = Self::try_stop(pid)? {
                return Ok(inside);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        bail!("thread {tid} never waits in a system call")
    }

    fn try_stop(pid: Pid) -> Result<Option<Self>> {
        ptrace::attach(pid).context("attaching")?;
        let stopped = waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL))?;
        ensure!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        let saved = ptrace::getregs(pid)?;
        let mut code = [0; 2];
        memory.read_exact_at(&mut code, saved.rip.saturating_sub(2))?;
        let this = Self { pid, memory, saved };
        Ok((code == SYSCALL).then_some(this))
    }

    /// Makes one system call: what it returned, or its error.
    ///
    /// # Errors
    /// The process can't be controlled.
    pub fn call(&self, number: i64, args: &[Arg<'_>]) -> Result<Result<i64, Errno>> {
        let base = (self.saved.rsp - BELOW) & !15;
        let mut old = vec![0; ROOM * args.len()];
        self.memory.read_exact_at(&mut old, base)?;
        let mut values = [0; 6];
        for ((value, arg), at) in values.iter_mut().zip(args).zip((base..).step_by(ROOM)) {
            *value = match *arg {
                Arg::Number(n) => n,
                Arg::Bytes(bytes) => {
                    ensure!(bytes.len() <= ROOM, "an argument too long");
                    self.memory.write_all_at(bytes, at)?;
                    at
                }
            };
        }
        let result = self.execute(number, values);
        self.memory.write_all_at(&old, base)?;
        result
    }

    fn execute(&self, number: i64, args: [u64; 6]) -> Result<Result<i64, Errno>> {
        let mut regs = self.saved;
        regs.rip -= 2;
        regs.rax = unsigned(number);
        // The call that it waits in is not to be made again.
        regs.orig_rax = u64::MAX;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        ptrace::setregs(self.pid, regs)?;
        ptrace::step(self.pid, None)?;
        let stopped = waitpid(self.pid, Some(nix::sys::wait::WaitPidFlag::__WALL))?;
        ensure!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
        let value = signed(ptrace::getregs(self.pid)?.rax);
        Ok(match i32::try_from(-value) {
            Ok(errno @ 1..4096) => Err(Errno::from_raw(errno)),
            _ => Ok(value),
        })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let restored = ptrace::setregs(self.pid, self.saved);
        let detached = ptrace::detach(self.pid, None);
        for error in [restored.err(), detached.err()].into_iter().flatten() {
            eprintln!("lab: leaving process {}: {error}", self.pid);
        }
    }
}

fn unsigned(number: i64) -> u64 {
    u64::from_ne_bytes(number.to_ne_bytes())
}

fn signed(number: u64) -> i64 {
    i64::from_ne_bytes(number.to_ne_bytes())
}

/// Threads of a process.
///
/// # Errors
/// It is gone.
pub fn threads(pid: u32) -> Result<Vec<u32>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    Ok(names.filter_map(|n| n.parse().ok()).collect())
}

/// Ways out of a sandbox, tried from inside a thread. `outside` is a file that
/// it has no business with. What it could do that it must not.
///
/// # Errors
/// The thread can't be controlled.
pub fn breakouts(tid: u32, outside: &std::path::Path) -> Result<Vec<String>> {
    use Arg::{Bytes, Number};
    let inside = Inside::stop(tid)?;
    let mut path = outside.to_string_lossy().into_owned().into_bytes();
    path.push(0);
    let file = Bytes(&path);
    let here = Number(unsigned(-100));
    let shell = Bytes(b"/bin/sh\0");
    let none = Number(0);
    let flags = |f: i32| Number(u64::from(f.unsigned_abs()));
    let raw = flags(libc::SOCK_RAW);
    let user = flags(libc::CLONE_NEWUSER);
    let write = flags(libc::O_WRONLY);
    let attempts: [(&str, i64, Vec<Arg<'_>>); 22] = [
        (
            "read a file",
            libc::SYS_openat,
            vec![here, file, none, none],
        ),
        (
            "write a file",
            libc::SYS_openat,
            vec![here, file, write, none],
        ),
        ("open with open", libc::SYS_open, vec![file, none, none]),
        ("unlink a file", libc::SYS_unlinkat, vec![here, file, none]),
        ("unlink with unlink", libc::SYS_unlink, vec![file]),
        ("rename a file", libc::SYS_rename, vec![file, shell]),
        ("change a mode", libc::SYS_chmod, vec![file, Number(0o777)]),
        ("be traced", libc::SYS_ptrace, vec![none]),
        (
            "read another's memory",
            libc::SYS_process_vm_readv,
            vec![Number(1)],
        ),
        ("signal another", libc::SYS_kill, vec![Number(1), none]),
        (
            "packet socket",
            libc::SYS_socket,
            vec![flags(libc::AF_PACKET), raw, none],
        ),
        (
            "raw socket",
            libc::SYS_socket,
            vec![flags(libc::AF_INET), raw, Number(6)],
        ),
        ("user namespace", libc::SYS_unshare, vec![user]),
        (
            "network namespace",
            libc::SYS_unshare,
            vec![flags(libc::CLONE_NEWNET)],
        ),
        (
            "clone into a namespace",
            libc::SYS_clone,
            vec![Number(0x1000_0011), none],
        ),
        // A child that succeeds runs beside its parent, on the same sockets.
        ("fork", libc::SYS_fork, vec![]),
        (
            "fork with clone",
            libc::SYS_clone,
            vec![flags(libc::SIGCHLD)],
        ),
        ("clone3", libc::SYS_clone3, vec![file, Number(64)]),
        (
            "mount",
            libc::SYS_mount,
            vec![shell, shell, none, none, none],
        ),
        ("load BPF", libc::SYS_bpf, vec![none, none, none]),
        (
            "load a module",
            libc::SYS_init_module,
            vec![none, none, none],
        ),
        ("become root", libc::SYS_setuid, vec![none]),
    ];
    let mut possible = Vec::new();
    for (what, number, args) in attempts {
        if let Ok(value) = inside.call(number, &args)? {
            possible.push(format!("{what}: {value}"));
        }
    }
    Ok(possible)
}

/// Whether a thread can execute a file; if it can, it has.
///
/// # Errors
/// The thread can't be controlled.
pub fn executes(tid: u32) -> Result<bool> {
    let inside = Inside::stop(tid)?;
    let (shell, none) = (Arg::Bytes(b"/bin/sh\0"), Arg::Number(0));
    let by_path = inside.call(libc::SYS_execve, &[shell, none, none])?;
    let by_descriptor = inside.call(libc::SYS_execveat, &[none, shell, none, none, none])?;
    Ok(by_path.is_ok() || by_descriptor.is_ok())
}

/// System calls that are not among `allowed` and yet are not refused with
/// `EPERM`, tried from inside a thread without arguments.
///
/// # Errors
/// The thread can't be controlled.
pub fn unfiltered(tid: u32, allowed: &[i64]) -> Result<Vec<i64>> {
    /// Newer than any kernel of the laboratory has.
    const END: i64 = 480;
    let inside = Inside::stop(tid)?;
    let mut open = Vec::new();
    for number in (0..END).filter(|n| !allowed.contains(n)) {
        // Calls between 335 and 424 do not exist on x86-64.
        if !(335..424).contains(&number) && inside.call(number, &[])? != Err(Errno::EPERM) {
            open.push(number);
        }
    }
    Ok(open)
}

/// Fails if a thread of a confined daemon finds a way out: to files (`file` is
/// one outside), to other programs, or by a system call that daemons do not make.
///
/// # Errors
/// What the thread can do; or it can't be traced.
pub fn check_confined(tid: u32, file: &std::path::Path) -> Result<()> {
    let possible = breakouts(tid, file)?;
    ensure!(possible.is_empty(), "thread {tid} can: {possible:?}");
    ensure!(!executes(tid)?, "thread {tid} can execute a file");
    let open = unfiltered(tid, daemon::sandbox::SYSCALLS)?;
    // Filtered by their arguments, so not refused as a whole.
    let open: Vec<_> = open
        .into_iter()
        .filter(|n| *n != libc::SYS_socket)
        .collect();
    ensure!(open.is_empty(), "thread {tid} may call {open:?}");
    Ok(())
}
