//! Arguments, exit codes, and what all commands share. One file per command.

mod args;
mod compare;
mod decode;
mod demo;
#[cfg(feature = "gpu")]
mod devices;
mod encode;
#[cfg(feature = "net")]
mod fetch;
mod inspect;
mod list;
mod logging;
#[cfg(feature = "net")]
mod lookup;
mod profile;
#[cfg(feature = "net")]
mod publish;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "net")]
mod store;
#[cfg(feature = "net")]
mod stores;

use std::process::ExitCode;

use cacheg::{Error, ErrorKind, Result};
use clap::Parser;

/// LLM KV caches as compact, streamable containers.
#[derive(Parser)]
#[command(
    version,
    about = "LLM KV caches as compact, streamable containers",
    after_help = "Examples:\n  cacheg demo\n  cacheg encode kv.safetensors -o kv.cgkv --preset cachegen-paper\n  cacheg decode kv.cgkv -o back.safetensors\n\nExit codes: 0 done, 1 failed, 2 wrong usage. CACHEG_LOG=debug shows more."
)]
struct Cli {
    /// Threads to use [default: one per core]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// The whole story on an embedded real KV cache, in under a minute
    Demo(demo::Args),
    /// Encode a KV cache (safetensors) as a container
    Encode(encode::Args),
    /// Decode a container to a KV cache (safetensors)
    Decode(decode::Args),
    /// Show a container's geometry, stages, and where its bytes go
    Inspect(inspect::Args),
    /// Show how far two KV caches are apart, by layer
    Compare(compare::Args),
    /// Calibrate a profile on KV caches of one model
    Profile(profile::Args),
    /// Encode a KV cache in chunks at several levels, into a store
    #[cfg(feature = "net")]
    Publish(publish::Args),
    /// Fetch a context from a store, by a deadline
    #[cfg(feature = "net")]
    Fetch(fetch::Args),
    /// Find what a store has of a prompt
    #[cfg(feature = "net")]
    Lookup(lookup::Args),
    /// List, check and clean a store
    #[cfg(feature = "net")]
    #[command(subcommand)]
    Store(store::Command),
    /// Serve a store over HTTP
    #[cfg(feature = "serve")]
    Serve(serve::Args),
    /// List the stages that are linked
    Stages(list::Args),
    /// List GPUs and what they can do
    #[cfg(feature = "gpu")]
    Devices(devices::Args),
    /// List the presets
    Presets(list::Args),
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    match &cli.command {
        #[cfg(feature = "serve")]
        Command::Serve(args) => args.start_log(),
        _ => logging::start("warn", logging::Form::Short),
    }
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cacheg: {error}");
            // A wrong setting is wrong usage, like a wrong flag.
            ExitCode::from(if error.kind() == ErrorKind::InvalidSetting { 2 } else { 1 })
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Some(threads) = cli.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(usize::from(threads)).build_global();
        pool.map_err(|e| Error::setting(format!("--threads {threads}: {e}")))?;
    }
    match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Encode(args) => encode::run(&args),
        Command::Decode(args) => decode::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Profile(args) => profile::run(&args),
        #[cfg(feature = "net")]
        Command::Publish(args) => publish::run(&args),
        #[cfg(feature = "net")]
        Command::Fetch(args) => fetch::run(&args),
        #[cfg(feature = "net")]
        Command::Lookup(args) => lookup::run(&args),
        #[cfg(feature = "net")]
        Command::Store(command) => store::run(&command),
        #[cfg(feature = "serve")]
        Command::Serve(args) => serve::run(args, cli.threads),
        Command::Stages(args) => list::stages(&args),
        #[cfg(feature = "gpu")]
        Command::Devices(args) => devices::run(&args),
        Command::Presets(args) => list::presets(&args),
    }
}
