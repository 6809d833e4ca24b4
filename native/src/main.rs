//! Würstchen on the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    wuerstchen_cli::main()
}
