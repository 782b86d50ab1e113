//! The binary's edge: nothing but the hand-over to the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kv_correctness::cli::main()
}
