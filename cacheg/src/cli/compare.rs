//! `cacheg compare`

use std::path::PathBuf;

use cacheg::compare::{self, Sums};
use cacheg::{Error, Result};
use serde_json::{Value, json};

use super::args;
use cacheg::report::{Report, number};

#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cacheg compare kv.safetensors back.safetensors\n  cacheg compare kv.safetensors back.safetensors --max-rmse 0.1 && echo close enough"
)]
pub(crate) struct Args {
    /// The original
    a: PathBuf,
    /// What is compared with it
    b: PathBuf,
    /// Fail (exit code 1) if the root mean squared error over everything is larger
    #[arg(long, value_name = "X", value_parser = bound)]
    max_rmse: Option<f64>,
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

fn bound(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(bound) if bound >= 0.0 => Ok(bound),
        _ => Err("a number that is not negative".into()),
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let (a, b) = (args::kv(&args.a)?, args::kv(&args.b)?);
    let (a, b) = (a.view(), b.view());
    let sums = compare::planes(&a, &b)?;
    let mut report = Report::new("cacheg");
    for (plane, sums) in a.planes().iter().zip(&sums) {
        report.row(row(plane.name(), sums));
    }
    let all = sums.into_iter().fold(Sums::default(), Sums::plus);
    report.row(row("all".into(), &all));
    report.print(args.json, |report| {
        report.table(&[
            ("name", "tensor", 0),
            ("max_error", "max error", 5),
            ("rmse", "rmse", 6),
            ("snr_db", "SNR dB", 2),
            ("cosine", "cosine", 6),
        ])
    })?;
    let rmse = all.difference().rmse;
    match args.max_rmse {
        // A NaN is never within bounds.
        Some(max) if rmse.is_nan() || rmse > max => {
            Err(Error::data(format!("the root mean squared error is {rmse}, allowed is {max}")))
        }
        _ => Ok(()),
    }
}

fn row(name: String, sums: &Sums) -> Value {
    let d = sums.difference();
    json!({
        "name": name,
        "max_error": number(d.max_error),
        "rmse": number(d.rmse),
        "snr_db": number(d.snr_db),
        "cosine": number(d.cosine),
    })
}
