//! A machine: a VM that boots a Debian of its own, with systemd, from a disk.
//! It is what a package is installed on, and where units run.
//!
//! The disk is made once by mmdebstrap and never changed: what a run writes
//! is dropped in the end. Kernels and their modules are those of the other
//! VM.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::kernels::Kernel;
use crate::shell::{command, is_root, run, step};
use crate::vm::{Job, Vm};
use crate::{deps, root, workspace};

/// What is installed besides the essential packages.
const PACKAGES: &[&str] = &[
    "conntrack",
    "curl",
    "dbus",
    "init-system-helpers",
    "iproute2",
    "keepalived",
    "kmod",
    "libmnl0",
    "libnftnl11",
    "nftables",
    "procps",
    "systemd",
    "systemd-sysv",
    "vsftpd",
];

/// Units that would only take time.
const MASKED: &[&str] = &[
    "e2scrub_reap.service",
    "getty.target",
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-logind.service",
    "systemd-pstore.service",
    "systemd-random-seed.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-update-utmp.service",
    "timers.target",
    "vsftpd.service",
];

/// Runs the jobs once the system is up, and switches off after them.
const SERVICE: &str = "[Unit]
Description=Jobs of the laboratory
[Service]
ExecStart=/bin/sh /lab/guest.sh /lab inside
ExecStopPost=/bin/sh -c 'if [ -e /lab/finished ]; then sync; systemctl poweroff -ff; fi'
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
";

/// Where the guest finds the run's directory.
pub const GUEST_DIR: &str = "/lab";

/// Modules that lead to the disk and the shared directories.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "9pnet_virtio",
    "9p",
];

/// From busybox-static: it must not need a library.
const BUSYBOX: &str = "/bin/busybox";

/// What the kernel starts first.
const INIT: &str = "mount -t proc proc /proc
mount -t devtmpfs dev /dev
. /modules.sh
mount -t ext4 -o noatime /dev/vda /root
options=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /root/lib/modules/$(uname -r) /root/lab
mount -t 9p -o ro,cache=loose,$options modules /root/lib/modules/$(uname -r)
mount -t 9p -o $options run /root/lab
mount --move /dev /root/dev
mount --move /proc /root/proc
exec switch_root /root /lib/systemd/systemd
";

/// True if a machine can be booted: its disk is there, or can be made.
pub fn is_possible(suite: &str) -> Result<bool> {
    Ok(is_root() || disk_path(suite)?.is_file())
}

/// Boots a suite with a list of jobs; files of the run's directory are in
/// [`GUEST_DIR`]. `put` writes there what they need.
pub fn boot(
    suite: &str,
    kernel: &Kernel,
    jobs: &[Job],
    environment: &[(&str, String)],
    put: impl FnOnce(&Path) -> Result<()>,
) -> Result<Vm> {
    deps::for_machine()?;
    let disk = disk(suite)?;
    let name = format!("{suite}-{}", kernel.name);
    Vm::start(&name, jobs, environment, |dir| {
        put(dir)?;
        let initramfs = dir.join("initramfs");
        make_initramfs(kernel, &initramfs)?;
        qemu(kernel, &disk, &initramfs, dir)
    })
}

/// Starts the emulator, once more after each reboot: with a kernel from the
/// command line it does not get through one by itself. The disk is a copy
/// that nobody needs afterwards.
const EMULATE: &str = "while
\"$@\"
[ -e \"$0/again\" ]
do rm \"$0/again\"
done
rm \"$0/disk\"";

fn qemu(kernel: &Kernel, disk: &Path, initramfs: &Path, dir: &Path) -> Result<Command> {
    let console = File::create(dir.join("console"))?;
    let own = dir.join("disk");
    run(command("cp", &["--sparse=always"]).arg(disk).arg(&own))?;
    let mut qemu = command("sh", &["-c", EMULATE]);
    qemu.arg(dir).arg("qemu-system-x86_64");
    // As for the other VM: the same everywhere, unless KVM is asked for.
    let machine = match std::env::var_os("LAB_KVM") {
        Some(_) => "q35,accel=kvm",
        None => "q35,accel=tcg",
    };
    qemu.arg("-no-reboot");
    let append = "console=ttyS0 quiet panic=-1 mitigations=off systemd.show_status=1";
    qemu.args(["-nodefaults", "-display", "none", "-serial", "stdio"])
        .args(["-M", machine, "-cpu", "max", "-smp", "2", "-m", "1G"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", append])
        .arg("-drive")
        .arg(format!(
            "file={},format=raw,if=virtio,cache=unsafe",
            own.display()
        ))
        .args(shared("modules", &kernel.modules, ",readonly=on"))
        .args(shared("run", dir, ""))
        .env("TMPDIR", dir)
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console)
        .process_group(0);
    Ok(qemu)
}

fn shared(tag: &str, dir: &Path, options: &str) -> [String; 4] {
    let dir = dir.display();
    [
        "-fsdev".to_owned(),
        format!("local,id={tag},path={dir},security_model=none{options}"),
        "-device".to_owned(),
        format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]
}

/// The disk; made unless it is in the cache.
fn disk(suite: &str) -> Result<PathBuf> {
    let disk = disk_path(suite)?;
    if disk.is_file() {
        return Ok(disk);
    }
    step(&format!(
        "making a Debian {suite} for the machine: takes a minute or two"
    ));
    let part = disk.with_extension(format!("part-{}", std::process::id()));
    fs::create_dir_all(&part)?;
    let tree = part.join("root");
    root::make(suite, PACKAGES, &tree)?;
    configure(&tree)?;
    let image = part.join("image");
    let args = ["-q", "-t", "ext4", "-O", "^has_journal", "-d"];
    let mut mke2fs = command("/sbin/mke2fs", &args);
    run(mke2fs.arg(&tree).arg(&image).arg("1200M"))?;
    fs::rename(&image, &disk).with_context(|| disk.display().to_string())?;
    fs::remove_dir_all(&part).with_context(|| part.display().to_string())?;
    Ok(disk)
}

/// Its name has a hash of what it is made from.
fn disk_path(suite: &str) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (PACKAGES, MASKED, SERVICE, suite).hash(&mut hasher);
    let name = format!("{suite}-{:016x}", hasher.finish());
    let dir = workspace::lab().join("machines");
    fs::create_dir_all(&dir)?;
    Ok(dir.join(name))
}

/// The suite of the computer itself, where tests and package are built.
pub fn own_suite() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    text.lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release names no Debian suite")
}

fn configure(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        let path = units.join(unit);
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        symlink("/dev/null", &path).with_context(|| path.display().to_string())?;
    }
    let wants = units.join("multi-user.target.wants");
    fs::write(units.join("lab.service"), SERVICE)?;
    symlink("../lab.service", wants.join("lab.service"))?;
    // Without one, systemd takes this for a first boot and enables all units.
    fs::write(
        root.join("etc/machine-id"),
        format!("{}\n", "7e57".repeat(8)),
    )?;
    fs::write(root.join("etc/hostname"), "machine\n")?;
    fs::create_dir_all(root.join("lab")).context("making /lab")
}

/// busybox, the modules that lead to the disk, and a script.
fn make_initramfs(kernel: &Kernel, into: &Path) -> Result<()> {
    let tree = into.with_extension("tree");
    for dir in ["bin", "proc", "dev", "root", "modules"] {
        fs::create_dir_all(tree.join(dir))?;
    }
    fs::copy(BUSYBOX, tree.join("bin/busybox")).context(BUSYBOX)?;
    let mut load = String::new();
    for module in modules(kernel)? {
        let name = module.file_name().context("a module's name")?;
        fs::copy(&module, tree.join("modules").join(name))?;
        load += &format!("insmod /modules/{}\n", name.to_string_lossy());
    }
    fs::write(tree.join("modules.sh"), load)?;
    let shebang = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\n";
    fs::write(tree.join("init"), format!("{shebang}{INIT}"))?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    let script = format!("find . | {BUSYBOX} cpio -o -H newc");
    let mut cpio = command("sh", &["-c", &script]);
    cpio.current_dir(&tree)
        .stdout(File::create(into)?)
        .stderr(Stdio::null());
    run(&mut cpio).context("packing the initramfs")?;
    fs::remove_dir_all(&tree).with_context(|| tree.display().to_string())
}

/// Files of [`MODULES`] and of what they depend on, in the order to load
/// them. One that is built in, or that this kernel has no more, is left out.
fn modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let path = kernel.modules.join("modules.dep");
    let dep = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(load_order(&dep)
        .into_iter()
        .map(|file| kernel.modules.join(file))
        .collect())
}

/// From lines of modules.dep(5): `a.ko: b.ko c.ko`, where c comes first.
fn load_order(dep: &str) -> Vec<&str> {
    let mut order: Vec<&str> = Vec::new();
    for module in MODULES {
        let line = dep.lines().find(|line| names(line, module));
        let files = line.into_iter().flat_map(|line| line.split([' ', ':']));
        let files: Vec<_> = files.filter(|file| !file.is_empty()).collect();
        for file in files.into_iter().rev() {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

/// True if the line's module has this name.
fn names(line: &str, module: &str) -> bool {
    let file = line.split(':').next().unwrap_or_default();
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split_once(".ko")
        .is_some_and(|(name, _)| name == module)
}

#[cfg(test)]
mod tests {
    use super::load_order;

    #[test]
    fn modules_come_after_what_they_depend_on() {
        let dep = "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/jbd2/jbd2.ko.xz\n\
                   kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko\n\
                   kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko\n\
                   kernel/net/9p/9pnet.ko:\n";
        assert_eq!(
            load_order(dep),
            [
                "kernel/fs/jbd2/jbd2.ko.xz",
                "kernel/lib/crc16.ko.xz",
                "kernel/fs/ext4/ext4.ko.xz",
                "kernel/net/9p/9pnet.ko",
                "kernel/net/9p/9pnet_virtio.ko",
                "kernel/fs/9p/9p.ko",
            ]
        );
    }
}
