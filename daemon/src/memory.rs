//! Giving back the memory that only a start needs.
#![allow(unsafe_code, reason = "madvise on the program's own code, malloc_trim")]

use std::fs;
use std::io;

/// Where the program's code is in memory, and that of its libraries.
#[derive(Debug)]
pub struct Startup {
    code: Vec<(usize, usize)>,
}

impl Startup {
    /// Looks for it, while /proc can still be read.
    ///
    /// # Errors
    /// `/proc/self/maps` can't be read.
    pub fn find() -> io::Result<Self> {
        let code = code(&fs::read_to_string("/proc/self/maps")?);
        Ok(Self { code })
    }

    /// Gives free memory back to the system, and takes code out of this
    /// process's page table. What is needed again comes back from the page
    /// cache at its first use (`filemap_map_pages`); the parsers of options and
    /// configuration and what builds the sandbox do not.
    pub fn release(self) {
        // SAFETY: takes a number, and only gives back what nobody uses.
        unsafe { libc::malloc_trim(0) };
        for (start, end) in self.code {
            let at = std::ptr::without_provenance_mut(start);
            // SAFETY: the pages of such a range are those of a file, unless they
            // were written to since they were mapped, which would be lost. None
            // was: that takes a debugger's breakpoint or a text relocation, and a
            // program and libraries of position-independent code have none.
            unsafe { libc::madvise(at, end - start, libc::MADV_DONTNEED) };
        }
    }
}

/// Where files are mapped to be executed and can't be written to: start and end
/// of each range, as in proc_pid_maps(5).
fn code(maps: &str) -> Vec<(usize, usize)> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_code = fields.next()? == "r-xp" && fields.nth(3)?.starts_with('/');
        let number = |text| usize::from_str_radix(text, 16).ok();
        is_code.then_some((number(start)?, number(end)?))
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn code_is_what_is_executable_and_has_a_file() {
        let maps = "\
55b1000-55b2000 r--p 00000000 08:01 12  /usr/sbin/x\n\
55b2000-55b4000 r-xp 00001000 08:01 12  /usr/sbin/x y\n\
55b4000-55b5000 rw-p 00003000 08:01 12  /usr/sbin/x\n\
7f00000-7f01000 r-xp 00000000 00:00 0 \n\
7f02000-7f03000 rwxp 00000000 08:01 13  /lib/y.so\n\
7ff0000-7ff1000 r-xp 00000000 00:00 0   [vdso]\n\
nonsense\n";
        assert_eq!(code(maps), [(0x55b_2000, 0x55b_4000)]);
    }

    fn resident() -> usize {
        let maps = fs::read_to_string("/proc/self/smaps").expect("smaps");
        let mut in_code = false;
        let mut sum = 0;
        for line in maps.lines() {
            if line.contains("-") && !code(line).is_empty() {
                in_code = true;
            } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| in_code) {
                let kib = rss.trim_end_matches("kB").trim();
                sum += kib.parse::<usize>().expect("a number");
                in_code = false;
            }
        }
        sum
    }

    /// All of the code. Reading it maps it.
    fn contents() -> Vec<Vec<u8>> {
        let mem = fs::File::open("/proc/self/mem").expect("mem");
        let read = |&(start, end): &(usize, usize)| {
            let mut bytes = vec![0; end - start];
            let at = u64::try_from(start).expect("an address");
            mem.read_exact_at(&mut bytes, at).expect("code");
            bytes
        };
        let found = Startup::find().expect("/proc/self/maps");
        found.code.iter().map(read).collect()
    }

    #[test]
    fn code_goes_and_comes_back() {
        let code = contents();
        let before = resident();
        Startup::find().expect("/proc/self/maps").release();
        let after = resident();
        assert!(after < before, "{before} KiB, then {after}");
        assert!(contents() == code, "other code came back");
        let again = resident();
        assert!(again > after, "{after} KiB, then {again}");
    }
}
