//! `wuerstchen-mpi train`: does what `wuerstchen train` does in several processes, of which MPI starts one for each
//! GPU.

#![warn(clippy::print_stderr)]

mod watch;
mod world;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mpi::Threading;
use wuerstchen_cli::{Ranks, TrainArgs, exit_code, failure_of, on_all_cores, say, silence, train};
use wuerstchen_train::Peers;
use wuerstchen_train::peers::agree;

use self::watch::Watch;
use self::world::World;

/// Training of text-to-image models by several processes over MPI
#[derive(Parser)]
#[command(name = "wuerstchen-mpi", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Train a model as `wuerstchen train` does: each process computes its part of every batch
    Train(Args),
}

#[derive(clap::Args)]
struct Args {
    #[command(flatten)]
    train: TrainArgs,
    /// End all processes if one does nothing for this many seconds
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u64).range(1..))]
    stall_seconds: u64,
}

/// The command line cannot be run.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    on_all_cores(run)
}

fn run() -> ExitCode {
    // Only this thread takes part in sums, but another one may end all processes.
    let Some((_universe, _)) = mpi::initialize_with_threading(Threading::Serialized) else {
        unreachable!("nothing else initializes MPI")
    };
    let watch = Arc::new(Watch::new());
    let world = Arc::new(World::new(watch.clone()));
    watch.abort_on_panic(world.name());
    if let Err(error) = world.check_size() {
        say!("error: {error:#}");
        return ExitCode::from(USAGE);
    }
    if world.rank() > 0 {
        silence();
    }
    let cli = match Cli::try_parse() {
        // The text is the help or the version, which every process has and rank 0 prints.
        Err(text) if !text.use_stderr() => {
            if world.rank() == 0 {
                print!("{text}");
            }
            return ExitCode::SUCCESS;
        }
        cli => cli,
    };
    let done = cli.map_err(Unparsed::from).map_err(anyhow::Error::from);
    let done = done.and_then(|Cli { command: Command::Train(args) }| {
        watch.begin(world.name(), Duration::from_secs(args.stall_seconds));
        let listener = watch.clone();
        let ranks = Ranks {
            peers: world.clone(),
            local: world.local(),
            listener: Arc::new(move |event| listener.hear(event)),
        };
        train(&args.train, &ranks)
    });
    let code = end(&*world, done);
    watch.end();
    code
}

/// The command line cannot be read.
#[derive(Debug)]
struct Unparsed(String);

impl From<clap::Error> for Unparsed {
    fn from(error: clap::Error) -> Self {
        Self(error.to_string())
    }
}

impl std::fmt::Display for Unparsed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.trim_end().strip_prefix("error: ").unwrap_or(&self.0))
    }
}

impl std::error::Error for Unparsed {}

/// Ends all processes together. Rank 0 says what has failed, in whichever process.
fn end(peers: &dyn Peers, done: Result<()>) -> ExitCode {
    let own_code = |error: &anyhow::Error| {
        if error.is::<Unparsed>() { USAGE } else { exit_code(error) }
    };
    let (failure, own) = match done {
        Ok(()) => match agree(peers, Ok(false)) {
            Ok(_) => return ExitCode::SUCCESS,
            Err(failure) => (failure, 0),
        },
        Err(error) => {
            let code = own_code(&error);
            let known = failure_of(&error).cloned();
            let failure = known.map_or_else(|| agree(peers, Err(format!("{error:#}"))), Err);
            (failure.expect_err("this process has failed"), code)
        }
    };
    let mut code = vec![own];
    peers.broadcast(failure.rank, &mut code);
    if peers.rank() == 0 {
        say!("error: {failure}");
        say!("all {} processes end; what is saved is kept, for --resume auto", peers.size());
    }
    ExitCode::from(code.first().copied().unwrap_or_default())
}
