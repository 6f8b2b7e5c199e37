//! The `cacheg-bench` command.

#[cfg(feature = "llm")]
mod calibrate;
mod codec;
#[cfg(feature = "llm")]
mod model;
mod peak;
#[cfg(feature = "llm")]
mod prefill;
#[cfg(feature = "llm")]
mod quality;
mod throughput;

use std::process::ExitCode;

use clap::Parser;

/// Benches of cacheg.
#[derive(Parser)]
#[command(version, about)]
enum Cli {
    /// Sizes against their bounds, peak memory, and time against length
    Codec(codec::Args),
    /// Speed and size of coders against peers, and of whole encodes and decodes by preset and threads
    Throughput(throughput::Args),
    /// Fetch a language model, or show what one looks like
    #[cfg(feature = "llm")]
    #[command(subcommand)]
    Model(model::Command),
    /// Run a language model over a text and write its KV cache
    #[cfg(feature = "llm")]
    Prefill(prefill::Args),
    /// Statistics of a language model for `cacheg profile --statistics`, and a check of them
    #[cfg(feature = "llm")]
    Calibrate(calibrate::Args),
    /// What codecs do to a language model's predictions, and at what size
    #[cfg(feature = "llm")]
    Quality(quality::Args),
    /// Encode or decode in this process and print its peak memory (used by `codec`)
    #[command(hide = true)]
    Peak(peak::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Codec(args) => codec::run(&args),
        Cli::Throughput(args) => throughput::run(&args),
        #[cfg(feature = "llm")]
        Cli::Model(command) => model::run(&command),
        #[cfg(feature = "llm")]
        Cli::Prefill(args) => prefill::run(&args),
        #[cfg(feature = "llm")]
        Cli::Calibrate(args) => calibrate::run(&args),
        #[cfg(feature = "llm")]
        Cli::Quality(args) => quality::run(&args),
        Cli::Peak(args) => peak::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cacheg-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
