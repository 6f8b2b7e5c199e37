//! The `cacheg-bench` command.

#[cfg(feature = "llm")]
mod ablate;
mod bootstrap;
#[cfg(feature = "llm")]
mod calibrate;
mod codec;
mod comma;
mod end_to_end;
#[cfg(feature = "gpu")]
mod gpu;
mod labels;
#[cfg(feature = "llm")]
mod model;
mod peak;
#[cfg(feature = "llm")]
mod prefill;
#[cfg(feature = "llm")]
mod publish;
#[cfg(feature = "llm")]
mod quality;
mod report;
mod stream;
mod throughput;

use std::process::ExitCode;

use cacheg::{Error, Result};
use clap::Parser;

/// Benches of cacheg.
#[derive(Parser)]
#[command(version, about)]
enum Cli {
    /// Sizes against their bounds, peak memory, and time against length
    Codec(codec::Args),
    /// Speed and size of coders against peers, and of whole encodes and decodes by preset and threads
    Throughput(throughput::Args),
    /// Decoding on a GPU: where the time goes, beside the CPU
    #[cfg(feature = "gpu")]
    Gpu(gpu::Args),
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
    /// Prefill a text and publish it to a store
    #[cfg(feature = "llm")]
    Publish(publish::Args),
    /// Streaming: policies in simulation; time to first token, overhead and memory for real
    #[command(subcommand)]
    Stream(Stream),
    /// One HTML page of what other commands measured
    Report(report::Args),
    /// Encode or decode in this process and print its peak memory (used by `codec`)
    #[command(hide = true)]
    Peak(peak::Args),
    /// Serve a store until standard input ends (used by `stream`)
    #[command(hide = true)]
    StreamServe(end_to_end::server::Args),
    /// Make requests that come by standard input (used by `stream --real`)
    #[cfg(feature = "llm")]
    #[command(hide = true)]
    StreamClient(end_to_end::client::Args),
    /// Publish in this process and print its peak memory (used by `stream --publish`)
    #[command(hide = true)]
    StreamPublish(end_to_end::long::ChildArgs),
}

/// What of streaming is measured.
#[derive(clap::Subcommand)]
enum Stream {
    /// Policies of the streaming client side by side, on simulated links
    #[command(long_flag = "sim")]
    Sim(stream::Args),
    /// Time to first token on a shaped link, with a real model and a real server
    #[cfg(feature = "llm")]
    #[command(long_flag = "real")]
    Real(end_to_end::real::Args),
    /// What fetching adds to the slower of downloading and decoding
    #[command(long_flag = "overhead")]
    Overhead(end_to_end::overhead::Args),
    /// Memory and time of publishing long contexts
    #[command(long_flag = "publish")]
    Publish(end_to_end::long::Args),
}

/// A runtime for what waits for stores and children.
fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| Error::Io { context: "cannot start threads".into(), source })
}

fn main() -> ExitCode {
    let result = match Cli::parse() {
        Cli::Codec(args) => codec::run(&args),
        Cli::Throughput(args) => throughput::run(&args),
        #[cfg(feature = "gpu")]
        Cli::Gpu(args) => gpu::run(&args),
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
        #[cfg(feature = "llm")]
        Cli::Publish(args) => publish::run(&args),
        Cli::Stream(Stream::Sim(args)) => stream::run(&args),
        #[cfg(feature = "llm")]
        Cli::Stream(Stream::Real(args)) => end_to_end::real::run(&args),
        Cli::Stream(Stream::Overhead(args)) => end_to_end::overhead::run(&args),
        Cli::Stream(Stream::Publish(args)) => end_to_end::long::run(&args),
        Cli::Report(args) => report::run(&args),
        Cli::Peak(args) => peak::run(&args),
        Cli::StreamServe(args) => end_to_end::server::run(&args),
        #[cfg(feature = "llm")]
        Cli::StreamClient(args) => end_to_end::client::run(&args),
        Cli::StreamPublish(args) => end_to_end::long::run_child(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cacheg-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
