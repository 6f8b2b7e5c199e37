//! `cacheg profile`

use std::io::Write;
use std::path::PathBuf;

use cacheg::output::OutputFile;
use cacheg::{Error, Pipeline, Result, calibrate_with};
use serde_json::json;

use super::args;
use cacheg::report::{Report, progress};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg profile a.safetensors b.safetensors -o model.cgprof\n  cacheg profile *.safetensors -o model.cgprof --preset lossless --pipeline 'mean|uniform(bits=4)|rans'\n\nCalibrate on other text than you encode. The profile's name is the SHA-256 of its bytes; containers that were\nencoded with it name it and cannot be decoded without it."
)]
pub(crate) struct Args {
    /// KV caches of one model
    #[arg(required = true)]
    inputs: Vec<PathBuf>,
    /// The profile to write
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Presets to calibrate for, all their levels, or one (`klt@3`) [default: cachegen-paper and lossless]
    #[arg(long, value_name = "NAME")]
    preset: Vec<String>,
    /// Further pipelines, as spec strings
    #[arg(long, value_name = "SPEC")]
    pipeline: Vec<String>,
    /// Statistics of the model (.cgstat), for stages that use them; `cacheg-bench calibrate` makes some
    #[arg(long, value_name = "FILE")]
    statistics: Option<PathBuf>,
    /// Tokens per chunk
    #[arg(long, value_name = "N", default_value = "1500", value_parser = clap::value_parser!(u32).range(1..))]
    chunk_tokens: u32,
    /// Replace the output if it exists
    #[arg(long)]
    force: bool,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let registry = cacheg::builtins()?;
    let mut presets: Vec<&str> = args.preset.iter().map(String::as_str).collect();
    if args.preset.is_empty() && args.pipeline.is_empty() {
        presets = vec!["cachegen-paper", "lossless"];
    }
    let mut specs: Vec<&str> = args.pipeline.iter().map(String::as_str).collect();
    for name in presets {
        match name.split_once('@') {
            None => specs.extend(cacheg::preset(name)?.calibrated_for_all()),
            Some((preset, level)) => {
                let level = level.parse().map_err(|_| {
                    Error::setting(format!("`{name}`: a number expected behind `@`, as in `klt@3`"))
                })?;
                specs.extend(cacheg::preset(preset)?.calibrated_for(level)?);
            }
        }
    }
    let pipelines = specs.iter().map(|spec| Pipeline::parse(&registry, spec)).collect::<Result<Vec<_>>>()?;
    let statistics = args::statistics(args.statistics.as_deref())?;
    let files = args.inputs.iter().map(|path| args::kv(path)).collect::<Result<Vec<_>>>()?;
    let mut out = OutputFile::create(&args.output, args.force)?;
    let wanted = pipelines.iter().any(Pipeline::wants_importance);
    let known = files.iter().zip(&args.inputs).map(|(file, path)| args::importance(file, path, wanted));
    let known = known.collect::<Result<Vec<_>>>()?;
    let views = files.iter().zip(&known).map(|(file, known)| file.view().with_importance(known.as_ref()));
    let views = views.collect::<Result<Vec<_>>>()?;
    let tokens: u64 = views.iter().map(|view| view.tokens() as u64).sum();
    // At most one pass over everything for each stage.
    let passes: usize = pipelines.iter().map(|pipeline| pipeline.specs().len()).sum();
    let bar = progress(tokens * passes as u64, "calibrating");
    let chunk = args.chunk_tokens as usize;
    let profile = calibrate_with(&pipelines, &views, chunk, statistics.as_ref(), &|n| bar.inc(n))?;
    out.write_all(profile.bytes()).map_err(|e| Error::io("cannot write", &args.output, e))?;
    out.commit()?;
    bar.finish_and_clear();
    let mut report = Report::new("cacheg");
    report.field("profile", profile.hash());
    report.field("bytes", profile.bytes().len());
    report.field("contexts", profile.contexts());
    report.field("tokens", profile.tokens());
    report.field("statistics", profile.statistics());
    for stages in profile.sections() {
        report.row(json!({"name": cacheg::spec::format(stages)}));
    }
    report.print(args.json, |report| {
        format!(
            "{}: {} bytes, calibrated on {} tokens of {} KV caches, for\n{}\nsha256 {}",
            args.output.display(),
            profile.bytes().len(),
            profile.tokens(),
            profile.contexts(),
            report.table(&[("name", "stages", 0)]),
            profile.hash()
        )
    })
}
