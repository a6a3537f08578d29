//! Command line entry point.

fn main() -> std::process::ExitCode {
    ctsync::cli::main().into()
}
