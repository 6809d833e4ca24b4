//! Würstchen on the command line: the commands of `wuerstchen`, of which `wuerstchen-mpi` takes `train`.

#![warn(clippy::print_stderr)]

#[macro_use]
mod terminal;
mod art;
mod bench;
mod cache;
mod compare;
mod cost;
mod data;
mod devices;
mod eval;
mod export;
mod files;
mod folder;
mod generate;
mod import;
mod inspect;
#[cfg(feature = "gpu")]
mod kernels;
#[cfg(feature = "gpu")]
mod launches;
mod lora;
mod measure;
mod memory;
mod model;
mod new_folder;
mod output;
mod pictures;
mod progress;
mod reconstruct;
mod serve;
mod shards;
mod train;
mod verify;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;
use wuerstchen::OptionsError;
use wuerstchen_train::{Failure, RunError};

pub use self::terminal::{silence, visible_lines};
pub use self::train::{Ranks, TrainArgs, run as train};

/// Model weights and features are large and short-lived. The system's allocator returns them to the kernel each time,
/// and on small models the page faults of the next allocation cost more than the arithmetic.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Text-to-image in three stages
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make pictures from prompts, from other pictures, or both
    #[command(
        allow_negative_numbers = true,
        override_usage = "wuerstchen generate [PROMPT] [OPTIONS]"
    )]
    Generate(Box<generate::GenerateArgs>),
    /// Turn published weights into a model in one folder
    Import(import::ImportArgs),
    /// Show what the stages keep of a picture; the model needs the semantic compressor
    #[command(mut_args(reconstruct::hide_unused), allow_negative_numbers = true)]
    Reconstruct(reconstruct::ReconstructArgs),
    /// Tell how a picture was made, or what a model or a file of weights contains
    Inspect(inspect::InspectArgs),
    /// Train a model: Stage A, then B with the compressor, then C; or fine-tune one
    Train(train::TrainArgs),
    /// Look through pictures to train on, pack them into .tar files, or fill the caches of training
    Data(data::DataArgs),
    /// Write a model in another form
    Export(export::ExportArgs),
    /// Serve the demo page and models over HTTP
    Serve(serve::ServeArgs),
    /// Measure how well pictures show what their prompts say
    #[command(mut_args(eval::hide_refused), allow_negative_numbers = true)]
    Eval(eval::EvalArgs),
    /// Compare pictures with others: PSNR, SSIM, LPIPS, FID, CLIP score, nearest neighbours
    Compare(compare::CompareArgs),
    /// Time every stage, in generation and in training
    Bench(bench::BenchArgs),
    /// Count the multiply-adds of a picture and of training, beside Stable Diffusion's
    Cost(cost::CostArgs),
    /// Compare every stage with tensors of the authors' code
    Verify(verify::VerifyArgs),
    /// List the devices that can run the model
    Devices(devices::DevicesArgs),
}

/// A check failed.
const FAILED: u8 = 1;
/// The options cannot be run; clap's own errors have this code too.
const USAGE: u8 = 2;
/// There is no such device, or it failed.
const DEVICE: u8 = 3;
/// A file is missing or not what it should be.
const DATA: u8 = 4;

/// Runs `wuerstchen` with this process's arguments.
pub fn main() -> ExitCode {
    on_all_cores(run_arguments)
}

/// Calls `f` on a thread of rayon's global pool, which gets one thread for each core; says so if they cannot be started.
///
/// A kernel divides its work among the threads of the pool in which it is called. Outside of a pool, its caller wakes a
/// thread and sleeps until that one is done: with small models this takes a sixth of a picture's time.
///
/// The pool must be the global one, which is never dropped. Dropping a pool does not wait for its threads: what a GPU's
/// driver keeps for a thread would be freed while the process, at its end, frees what the driver keeps for all of them,
/// and now and then the driver frees something twice.
pub fn on_all_cores(f: impl FnOnce() -> ExitCode + Send) -> ExitCode {
    const STACK: usize = 8 << 20; // bytes, as the main thread usually has
    match rayon::ThreadPoolBuilder::new().stack_size(STACK).build_global() {
        Ok(()) => rayon::scope(|_| f()),
        Err(error) => {
            say!(
                "error: cannot start the threads: {error}; RAYON_NUM_THREADS=1 in the environment asks for one"
            );
            ExitCode::from(FAILED)
        }
    }
}

fn run_arguments() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => {
            say!("error: {}", as_typed(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Generate(args) => generate::run(&args).map(|()| true),
        Command::Import(args) => import::run(&args),
        Command::Reconstruct(args) => reconstruct::run(&args).map(|()| true),
        Command::Inspect(args) => inspect::run(&args).map(|()| true),
        Command::Train(args) => train::run(&args, &Ranks::alone()).map(|()| true),
        Command::Data(args) => data::run(&args).map(|()| true),
        Command::Export(args) => export::run(&args).map(|()| true),
        Command::Serve(args) => serve::run(&args).map(|()| true),
        Command::Eval(args) => eval::run(&args).map(|()| true),
        Command::Compare(args) => compare::run(&args).map(|()| true),
        Command::Bench(args) => bench::run(&args).map(|()| true),
        Command::Cost(args) => cost::run(&args).map(|()| true),
        Command::Verify(args) => verify::run(&args),
        Command::Devices(args) => devices::run(&args).map(|()| true),
    }
}

/// Writes a result to stdout. It is no error if the reader has closed it.
fn print(text: &str) -> Result<()> {
    if terminal::is_silent() {
        return Ok(());
    }
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

/// The command line asks for something impossible.
#[derive(Debug)]
struct UsageError(String);

impl std::fmt::Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// The text of an error, in which options that the library names, such as `prior_steps`, are written as they are typed,
/// `--prior-steps`. A cause behind a colon names no options.
fn as_typed(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let found = error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(wuerstchen::Error::Options(error)) => Some(error),
        _ => cause.downcast_ref::<OptionsError>(),
    });
    let Some(options) = found else { return text };
    let named = options.to_string();
    let named = named.split_once(": ").map_or(named.as_str(), |(options, _)| options);
    let words = named.split(' ').enumerate().map(|(place, word)| {
        if word.contains('_') || place == 0 && word == options.field() {
            as_option(word)
        } else {
            word.to_owned()
        }
    });
    text.replace(named, &words.collect::<Vec<_>>().join(" "))
}

/// The name of an option as it is typed.
fn as_option(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// Marks an error as one of the command line.
fn usage(error: &anyhow::Error) -> anyhow::Error {
    UsageError(format!("{error:#}")).into()
}

/// The exit code of a program for an error: 1 where a check failed, 2 for options that cannot be run, 3 for devices, 4
/// for files.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(DATA)
}

/// The exit code of a cause, if it has one.
fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    use wuerstchen::Error;
    if cause.is::<devices::NoDevice>() {
        return Some(DEVICE);
    }
    if cause.is::<UsageError>() || cause.is::<OptionsError>() {
        return Some(USAGE);
    }
    let of_run = match cause.downcast_ref() {
        Some(RunError::Diverged { .. } | RunError::NotFinite { .. }) => return Some(FAILED),
        Some(RunError::Failed { own: Some(own), .. }) => return code_of(&**own),
        Some(RunError::Generate(error)) => Some(error),
        _ => None,
    };
    match of_run.or_else(|| cause.downcast_ref::<Error>())? {
        Error::Options(_) | Error::Tokenizer(_) | Error::NotFinite { .. } => Some(USAGE),
        Error::Device(_) => Some(DEVICE),
        Error::Cancelled => Some(FAILED),
        Error::Load(_) => Some(DATA),
    }
}

/// The failure of one of the processes that train together, if that is the error and all processes know of it.
pub fn failure_of(error: &anyhow::Error) -> Option<&Failure> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(RunError::Failed { failure, .. }) => Some(failure),
        _ => None,
    })
}
