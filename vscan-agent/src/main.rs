//! The program `vscan`.

use std::process::ExitCode;

fn main() -> ExitCode {
    vscan_agent::cli::main()
}
