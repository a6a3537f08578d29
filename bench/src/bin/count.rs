//! Does one case so often, for callgrind: `count CASE TIMES`; without
//! arguments, the names of all cases.

use std::process::ExitCode;

use bench::cases::CASES;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(wanted) = args.next() else {
        for (name, _) in CASES {
            println!("{name}");
        }
        return ExitCode::SUCCESS;
    };
    let times = args.next().and_then(|n| n.parse().ok());
    let case = CASES.iter().find(|(name, _)| *name == wanted);
    match case.zip(times) {
        Some(((_, make), times)) => {
            make()(times);
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("count CASE TIMES");
            ExitCode::from(2)
        }
    }
}
