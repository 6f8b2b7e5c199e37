//! `cacheg stages` and `cacheg presets`

use cacheg::{PRESETS, Result};
use serde_json::json;

use cacheg::report::Report;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn stages(args: &Args) -> Result<()> {
    let mut report = Report::new("cacheg");
    for plugin in cacheg::builtins()?.iter() {
        report.row(json!({
            "name": plugin.name,
            "kind": plugin.build.kind(),
            "format_version": plugin.version,
            "origin": plugin.origin,
            "summary": plugin.summary,
            "usage": plugin.usage,
        }));
    }
    report.print(args.json, |report| {
        let table = report.table(&[
            ("name", "stage", 0),
            ("kind", "kind", 0),
            ("format_version", "format", 0),
            ("origin", "from", 0),
            ("usage", "settings and defaults", 0),
            ("summary", "what it does", 0),
        ]);
        format!("{table}\n\nA pipeline is at most one select stage, any number of transforms, one quantizer and one coder, joined by `|`:\n  cacheg encode kv.safetensors -o kv.cgkv --pipeline 'mean|uniform(bits=4;group=32)|rans(tables=class)'")
    })
}

pub(crate) fn presets(args: &Args) -> Result<()> {
    let mut report = Report::new("cacheg");
    for preset in PRESETS {
        for (level, spec) in preset.levels.iter().enumerate() {
            let default = level == preset.default_level;
            report.row(json!({
                "name": preset.name,
                "level": level,
                "default": default,
                "mark": if default { "*" } else { "" },
                "chunk_tokens": preset.chunk_tokens,
                "pipeline": spec,
                "summary": preset.summary,
            }));
        }
    }
    report.print(args.json, |report| {
        let mut text = report.table(&[
            ("name", "preset", 0),
            ("level", "level", 0),
            ("mark", "", 0),
            ("chunk_tokens", "chunk", 0),
            ("pipeline", "pipeline", 0),
        ]);
        text.push_str(
            "\n\n* the level used when none is given; level 0 is the best quality; chunk in tokens\n",
        );
        for preset in PRESETS {
            text.push_str(&format!("\n{:<17} {}", preset.name, preset.summary));
        }
        text
    })
}
