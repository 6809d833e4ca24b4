//! stub main
mod devices; mod eval; mod files; mod train;
use clap::Parser;
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
#[derive(Parser)]
enum Cli { Train(train::TrainArgs), Eval(eval::EvalArgs) }
pub(crate) fn usage(error: anyhow::Error) -> anyhow::Error { error }
fn main() -> anyhow::Result<()> { match Cli::parse() { Cli::Train(args) => train::run(&args), Cli::Eval(args) => eval::run(&args) } }
