//! Peak memory of one encode or decode, in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use cacheg::core::{Cpu, write_kv};
use cacheg::output::OutputFile;
use cacheg::{Encoder, Error, KvFile, Limits, Pipeline, Result, flow};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `encode` or `decode`
    #[arg(value_parser = ["encode", "decode"])]
    what: String,
    input: PathBuf,
    output: PathBuf,
    preset: String,
}

/// Does what the `cacheg` command does and prints the peak of the resident set in KiB.
pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let limits = Limits::default();
    let mut out = OutputFile::create(&args.output, true)?;
    if args.what == "encode" {
        let preset = cacheg::preset(&args.preset)?;
        let file = KvFile::open(&args.input, &limits)?;
        let encoder = Encoder::new(Pipeline::parse(&registry, preset.spec(None)?)?, file.geometry(), None)?;
        flow::encode(&file.view(), file.metadata(), &encoder, preset.chunk_tokens, &mut out, &|_| ())?;
    } else {
        let bytes = std::fs::read(&args.input).map_err(|e| Error::io("cannot read", &args.input, e))?;
        let decode = flow::Decode { registry: &registry, profile: None, backend: &Cpu };
        let decoded = decode.run(&bytes, &limits, &|_| ())?;
        write_kv(&mut out, &decoded.cache.view(), &decoded.metadata)?;
    }
    out.commit()?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    println!("{}", peak.trim().trim_end_matches(" kB"));
    Ok(())
}

/// Runs it in a child; bytes, or `None` where the system does not tell.
pub(crate) fn measure(what: &str, input: &Path, output: &Path, preset: &str) -> Result<Option<u64>> {
    let failed = |source| Error::Io { context: "cannot run a child process".into(), source };
    let program = std::env::current_exe().map_err(failed)?;
    let out = Command::new(program)
        .args(["peak", what])
        .args([input, output])
        .arg(preset)
        .output()
        .map_err(failed)?;
    if !out.status.success() {
        return Err(Error::data(String::from_utf8_lossy(&out.stderr).into_owned()));
    }
    let kib = String::from_utf8_lossy(&out.stdout).trim().parse::<u64>().unwrap_or(0);
    Ok(Some(kib * 1024).filter(|bytes| *bytes > 0))
}
