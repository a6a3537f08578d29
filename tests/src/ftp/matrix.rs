//! The matrix: every client, mode and family against one server, for each
//! kind of NAT, and a table of how it went.

use std::fmt::Write;

use anyhow::{Result, ensure};

use crate::firewall::Nat;
use crate::ftp::server::Program;
use crate::ftp::suite::{Case, World};
use crate::require::is_full;
use crate::results;

/// Runs the matrix of one server behind one kind of NAT. `helper` prepares
/// the firewall and says what it prepared; what it returns is kept until
/// everything has been tried.
///
/// # Errors
/// With the table and all failures, if a case fails.
pub fn run<H>(
    helper: &str,
    program: Program,
    nat: Nat,
    prepare: impl FnOnce(&World) -> Result<H>,
) -> Result<()> {
    let full = is_full();
    let mut table = String::new();
    let mut failures = String::new();
    let place = Nat::ALL.iter().position(|other| *other == nat).unwrap_or(0);
    let world = World::with_server(program, nat)?;
    let kept = prepare(&world)?;
    for case in cases(full, program, place) {
        let result = world.passes(case);
        let verdict = if result.is_ok() { "pass" } else { "FAIL" };
        let name = program.name();
        let _ = writeln!(table, "{verdict}  {name} {nat}: {case}");
        results::record(&[
            "matrix",
            helper,
            name,
            &nat.to_string(),
            case.client.name(),
            case.mode.verb(),
            &case.family.to_string(),
            verdict,
        ])?;
        if let Err(error) = result {
            let _ = writeln!(failures, "--- {nat}: {error:#}");
        }
    }
    // Before the world, whose namespaces it may live in.
    drop(kept);
    println!("{table}");
    ensure!(failures.is_empty(), "{table}{failures}");
    Ok(())
}

/// A test for each server and kind of NAT; `$run` takes both.
#[macro_export]
macro_rules! matrix_tests {
    ($run:ident) => {
        $crate::matrix_tests! {
            $run
            vsftpd_without_nat: Vsftpd None;
            vsftpd_with_snat: Vsftpd Snat;
            vsftpd_with_dnat: Vsftpd Dnat;
            vsftpd_with_both: Vsftpd Both;
            proftpd_without_nat: Proftpd None;
            proftpd_with_snat: Proftpd Snat;
            proftpd_with_dnat: Proftpd Dnat;
            proftpd_with_both: Proftpd Both;
            pure_ftpd_without_nat: PureFtpd None;
            pure_ftpd_with_snat: PureFtpd Snat;
            pure_ftpd_with_dnat: PureFtpd Dnat;
            pure_ftpd_with_both: PureFtpd Both;
        }
    };
    ($run:ident $($name:ident: $program:ident $nat:ident;)+) => {$(
        #[test]
        fn $name() -> ::anyhow::Result<()> {
            $run(
                $crate::ftp::server::Program::$program,
                $crate::firewall::Nat::$nat,
            )
        }
    )+};
}

/// All cases, or every eighth of them, another eighth for each server and
/// NAT: so that together they cover every client, mode and family.
fn cases(full: bool, program: Program, nat: usize) -> impl Iterator<Item = Case> {
    const PART: usize = 8;
    let server = Program::ALL.iter().position(|other| *other == program);
    let offset = (server.unwrap_or(0) * 3 + nat) % PART;
    Case::all()
        .enumerate()
        .filter(move |(n, _)| full || n % PART == offset)
        .map(|(_, case)| case)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn subset() -> Vec<(Program, usize, Case)> {
        Program::ALL
            .into_iter()
            .flat_map(|program| (0..Nat::ALL.len()).map(move |nat| (program, nat)))
            .flat_map(|(program, nat)| {
                cases(false, program, nat).map(move |case| (program, nat, case))
            })
            .collect()
    }

    #[test]
    fn the_subset_covers_every_client_mode_and_family() {
        let covered: HashSet<Case> = subset().into_iter().map(|(_, _, case)| case).collect();
        let all: HashSet<Case> = Case::all().collect();
        assert_eq!(covered, all);
    }

    #[test]
    fn the_subset_is_small_and_has_every_server_with_every_nat() {
        let subset = subset();
        assert!(subset.len() < 40, "{}", subset.len());
        let pairs: HashSet<_> = subset.iter().map(|(p, nat, _)| (*p, *nat)).collect();
        assert_eq!(pairs.len(), 12);
    }

    #[test]
    fn full_is_everything() {
        assert_eq!(
            cases(true, Program::Proftpd, 2).count(),
            Case::all().count()
        );
    }
}
