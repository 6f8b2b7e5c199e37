//! `cacheg devices`

use cacheg::Result;
use cacheg::gpu::{Gpu, adapters};
use serde_json::json;

use cacheg::report::Report;

#[derive(clap::Args)]
#[command(
    after_help = "Adapters that compute on a CPU (Mesa's llvmpipe) are for tests: `--device gpu` passes them over, `--device gpu:llvmpipe`\ntakes them, and so does everything with CACHEG_GPU_CPU_ADAPTERS=1."
)]
pub(crate) struct Args {
    /// Report as JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut report = Report::new("cacheg");
    for info in adapters() {
        let opened = Gpu::open(Some(&info.name));
        let test = opened.as_ref().map_or_else(ToString::to_string, |_| "passed".to_owned());
        report.row(json!({
            "name": info.name,
            "kind": info.kind,
            "api": info.api,
            "driver": info.driver,
            "max_binding_bytes": info.max_binding,
            "max_buffer_bytes": info.max_buffer,
            "subgroups": format!("{} to {}", info.subgroups[0], info.subgroups[1]),
            "timestamps": info.timestamps,
            "kernel": opened.as_ref().ok().map(|gpu| gpu.variant().name()),
            "self_test": test,
            "long_loops": opened.as_ref().ok().map(|gpu| gpu.tested().long_loops),
            "correctness_only": info.is_cpu,
        }));
    }
    report.print(args.json, |report| {
        if report.rows().is_empty() {
            return "no GPU: no driver offers any (Linux: install your vendor's Vulkan driver)".to_owned();
        }
        let mut text = report.table(&[
            ("name", "adapter", 0),
            ("kind", "kind", 0),
            ("api", "API", 0),
            ("driver", "driver", 0),
            ("max_binding_bytes", "binding, bytes", 0),
            ("subgroups", "subgroups", 0),
            ("kernel", "kernel", 0),
            ("self_test", "self-test", 0),
        ]);
        text.push_str("\n\nDecode on one: cacheg decode kv.cgkv -o kv.safetensors --device gpu:NAME (a part of the name)");
        text
    })
}
