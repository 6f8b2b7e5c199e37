//! How long a decision takes: `cargo bench -p cacheg-net --bench plan`.
//!
//! It runs beside a socket: less than 1 ms for 10 chunks of 6 levels, less than 20 ms for 64 chunks.

#![expect(clippy::unwrap_used, reason = "a bench")]

use std::time::Duration;

use cacheg_net::control::{Action, Chunk, Controller, Job, Level, TransferId, estimators, policies};
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// A request whose first transfer has begun.
fn begun(chunks: usize, levels: u64) -> (Controller, TransferId) {
    let level = |level: u64| {
        Level::new(40_000_000 / (level + 1), 0.01 * 2_f64.powi(level as i32), Duration::from_millis(40))
    };
    let chunk = Chunk { levels: (0..levels).map(level).collect(), text: None };
    let job = Job::new(vec![chunk; chunks], Duration::from_millis(150) * chunks as u32).unwrap();
    let mut controller =
        Controller::new(job, policies().build("plan").unwrap(), estimators().build("last").unwrap());
    let Action::Fetch(fetch) = controller.poll(Duration::ZERO) else { panic!("no transfer") };
    (controller, fetch.transfer)
}

/// A transfer is complete: the table is made anew.
#[divan::bench(args = [(10, 3), (10, 6), (64, 3), (64, 6)])]
fn completion(bencher: Bencher<'_, '_>, (chunks, levels): (usize, u64)) {
    bencher.with_inputs(|| begun(chunks, levels)).bench_values(|(mut controller, transfer)| {
        let now = Duration::from_millis(60);
        controller.received(now, transfer);
        black_box(controller.poll(now));
        controller
    });
}

/// Some bytes have arrived, and the rate is another.
#[divan::bench(args = [(10, 6), (64, 6)])]
fn sample(bencher: Bencher<'_, '_>, (chunks, levels): (usize, u64)) {
    bencher.with_inputs(|| begun(chunks, levels)).bench_values(|(mut controller, transfer)| {
        let now = Duration::from_millis(60);
        controller.progress(now, transfer, 3_000_000);
        black_box(controller.poll(now));
        controller
    });
}

/// Some bytes have arrived, and the rate is the same as before.
#[divan::bench(args = [(10, 6), (64, 6)])]
fn same_rate(bencher: Bencher<'_, '_>, (chunks, levels): (usize, u64)) {
    let prepared = || {
        let (mut controller, transfer) = begun(chunks, levels);
        controller.progress(Duration::from_millis(60), transfer, 3_000_000);
        controller.poll(Duration::from_millis(60));
        (controller, transfer)
    };
    bencher.with_inputs(prepared).bench_values(|(mut controller, transfer)| {
        let now = Duration::from_millis(70);
        controller.progress(now, transfer, 3_500_000);
        black_box(controller.poll(now));
        controller
    });
}
