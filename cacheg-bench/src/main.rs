//! The `cacheg-bench` command.

#[cfg(feature = "llm")]
mod ablate;
mod bootstrap;
#[cfg(feature = "llm")]
mod calibrate;
mod codec;
mod comma;
mod labels;
#[cfg(feature = "llm")]
mod model;
mod peak;
#[cfg(feature = "llm")]
mod prefill;
#[cfg(feature = "llm")]
mod quality;
mod report;
mod stream;
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
    /// Policies of the streaming client side by side, on simulated links
    Stream(stream::Args),
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
    /// Measure a grid of codecs like `quality`, resumably, into a table
    #[cfg(feature = "llm")]
    Ablate(ablate::Args),
    /// One HTML page of what other commands measured
    Report(report::Args),
    /// Encode or decode in this process and print its peak memory (used by `codec`)
    #[command(hide = true)]
    Peak(peak::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Codec(args) => codec::run(&args),
        Cli::Throughput(args) => throughput::run(&args),
        Cli::Stream(args) => stream::run(&args),
        #[cfg(feature = "llm")]
        Cli::Model(command) => model::run(&command),
        #[cfg(feature = "llm")]
        Cli::Prefill(args) => prefill::run(&args),
        #[cfg(feature = "llm")]
        Cli::Calibrate(args) => calibrate::run(&args),
        #[cfg(feature = "llm")]
        Cli::Quality(args) => quality::run(&args),
        #[cfg(feature = "llm")]
        Cli::Ablate(args) => ablate::run(&args),
        Cli::Report(args) => report::run(&args),
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
