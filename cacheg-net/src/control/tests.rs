//! The controller with policies, in hand-driven time.

use std::time::Duration;

use super::*;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

fn chunk(sizes: &[(u64, f64)], text: Option<u64>) -> Chunk {
    let levels = sizes.iter().map(|(bytes, distortion)| Level::new(*bytes, *distortion, ms(10))).collect();
    Chunk { levels, text: text.map(ms) }
}

fn controller(job: Job, policy: &str) -> Controller {
    Controller::new(job, policies().build(policy).unwrap(), estimators().build("last").unwrap())
}

/// Expects what it is told to.
#[derive(Debug)]
struct Certain(f64);

impl Estimator for Certain {
    fn observe(&mut self, _: Sample) {}

    fn forecast(&self) -> Option<Forecast> {
        Some(Forecast { rate: self.0, errors: Errors { mean: 0.0, sigma: 0.0 } })
    }
}

fn fetched(action: Action) -> Fetch {
    match action {
        Action::Fetch(fetch) => fetch,
        other => panic!("{other:?}"),
    }
}

/// Runs on a link of a constant rate (bytes per second) and one decoder; the time at which all chunks were there.
fn drive(controller: &mut Controller, rate: f64) -> Duration {
    let mut now = Duration::ZERO;
    let mut finish = None;
    let mut transfer: Option<(Duration, Duration, Fetch)> = None;
    let mut decoding: std::collections::VecDeque<(Duration, Fetch)> = std::collections::VecDeque::new();
    let mut computing: Option<(Duration, usize)> = None;
    for _ in 0..100_000 {
        let until = match controller.poll(now) {
            Action::Fetch(fetch) => {
                let bytes = controller.job().segment(fetch.chunk, fetch.level, fetch.segment).unwrap().bytes;
                transfer = Some((now, now + Duration::from_secs_f64(bytes as f64 / rate), fetch));
                continue;
            }
            Action::Recompute { chunk } => {
                computing = Some((now + controller.job().chunks()[chunk].text.unwrap(), chunk));
                continue;
            }
            Action::Abandon { .. } => {
                transfer = None;
                continue;
            }
            Action::Wait { until } => until,
            Action::Done => return finish.unwrap_or(now),
        };
        let events = [transfer.map(|t| t.1), decoding.front().map(|d| d.0), computing.map(|c| c.0), until];
        now = events.into_iter().flatten().min().expect("something to wait for");
        if let Some((_, chunk)) = computing.take_if(|(end, _)| *end <= now) {
            controller.recomputed(now, chunk);
        }
        if let Some((_, fetch)) = decoding.front().copied().filter(|(end, _)| *end <= now) {
            decoding.pop_front();
            controller.decoded(now, fetch.chunk, fetch.level, fetch.segment);
        }
        if let Some((_, _, fetch)) = transfer.take_if(|(_, end, _)| *end <= now) {
            controller.received(now, fetch.transfer);
            let cost = controller.job().segment(fetch.chunk, fetch.level, fetch.segment).unwrap().decode;
            let free = decoding.back().map_or(now, |last| last.0);
            decoding.push_back((free + cost, fetch));
        } else if let Some((start, _, fetch)) = transfer {
            let bytes = (rate * (now - start).as_secs_f64()) as u64;
            controller.progress(now, fetch.transfer, bytes);
        }
        if finish.is_none() && controller.complete() {
            finish = Some(now);
        }
    }
    panic!("it does not end");
}

fn mean(controller: &Controller) -> f64 {
    let chunks = controller.chunks();
    chunks.iter().map(|chunk| chunk.present().unwrap()).sum::<f64>() / chunks.len() as f64
}

#[test]
fn fixed_takes_its_level_and_the_next_smaller_where_that_is_missing() {
    let sizes = [(300, 0.1), (200, 0.2), (100, 0.4)];
    let job = Job::new(vec![chunk(&sizes, None); 2], ms(1_000)).unwrap();
    let mut control = controller(job, "fixed(level=1)");
    let first = fetched(control.poll(ms(0)));
    assert_eq!((first.chunk, first.level, first.segment, first.upgrade), (0, 1, 0, false));
    assert!(matches!(control.poll(ms(0)), Action::Wait { .. }));
    control.failed(ms(5), first.transfer, Failure::Unusable);
    let second = fetched(control.poll(ms(5)));
    assert_eq!((second.chunk, second.level), (0, 2));
    control.received(ms(10), second.transfer);
    let third = fetched(control.poll(ms(10)));
    assert_eq!((third.chunk, third.level), (1, 1));
    control.received(ms(20), third.transfer);
    // Corrupt: level 2, then 0, then nothing is left.
    control.decode_failed(ms(21), 1, 1, 0);
    for level in [2, 0] {
        let fetch = fetched(control.poll(ms(22)));
        assert_eq!((fetch.chunk, fetch.level), (1, level));
        control.failed(ms(22), fetch.transfer, Failure::Unusable);
    }
    assert!(matches!(control.poll(ms(23)), Action::Wait { .. }), "chunk 0 is being decoded");
    control.decoded(ms(30), 0, 2, 0);
    assert_eq!(control.poll(ms(30)), Action::Done);
    assert_eq!(control.lost().collect::<Vec<_>>(), [1]);
    assert_eq!(control.chunks()[0].source(), Some(Source::Level { level: 2, segments: 1 }));
}

#[test]
fn cachegen_begins_in_the_middle_and_lets_the_last_rate_hold() {
    // Four chunks, a second, 10 ms to decode the last. 250 bytes in 250 ms: 1000 bytes a second hold.
    let sizes = [(400, 0.1), (250, 0.2), (100, 0.4)];
    let job = Job::new(vec![chunk(&sizes, None); 4], ms(1_000)).unwrap();
    let mut control = controller(job, "cachegen");
    let mut now = ms(0);
    // 740 bytes for three chunks: 100 each. Then at 2000 bytes a second 1380 for two: the best.
    for (level, took) in [(1, 250), (2, 50), (0, 200), (0, 100)] {
        let fetch = fetched(control.poll(now));
        assert_eq!(fetch.level, level, "chunk {}", fetch.chunk);
        now += ms(took);
        control.received(now, fetch.transfer);
    }
}

#[test]
fn cachegen_recomputes_when_all_that_is_left_fits() {
    let job = Job::new(vec![chunk(&[(100, 0.1)], Some(300)); 3], ms(1_000)).unwrap();
    assert_eq!(controller(job.clone(), "cachegen").poll(ms(0)), Action::Recompute { chunk: 0 });
    // 890 ms are not enough for three, 790 for two.
    let mut control = controller(job, "cachegen");
    let fetch = fetched(control.poll(ms(110)));
    control.received(ms(210), fetch.transfer);
    assert!(matches!(control.poll(ms(210)), Action::Wait { .. }), "chunk 0 is not decoded");
    control.decoded(ms(220), 0, 0, 0);
    assert_eq!(control.poll(ms(220)), Action::Recompute { chunk: 1 });
    control.recomputed(ms(520), 1);
    assert_eq!(control.poll(ms(520)), Action::Recompute { chunk: 2 });
    control.recomputed(ms(820), 2);
    assert_eq!(control.poll(ms(820)), Action::Done);
}

#[test]
fn cachegen_with_overlap_recomputes_in_front_of_what_it_fetches() {
    // Three chunks as text in 900 ms, so that the link begins with the fourth.
    let job = Job::new(vec![chunk(&[(200, 0.1), (100, 0.2)], Some(300)); 5], ms(1_000)).unwrap();
    let mut control = controller(job, "cachegen(overlap=true)");
    assert_eq!(control.poll(ms(0)), Action::Recompute { chunk: 0 });
    let fetch = fetched(control.poll(ms(0)));
    assert_eq!((fetch.chunk, fetch.level), (3, 0), "of two levels the first is the middle");
    assert!(matches!(control.poll(ms(0)), Action::Wait { .. }));
    control.received(ms(900), fetch.transfer);
    assert_eq!(fetched(control.poll(ms(900))).level, 1);
}

#[test]
fn artifact_takes_what_fits_its_share_of_the_time() {
    let job = Job::new(vec![chunk(&[(400, 0.1), (200, 0.2)], Some(50)); 4], ms(1_000)).unwrap();
    // 250 ms each; the bandwidth of the chunk: 2000, 1000, 500, 800.1 bytes a second.
    let oracle = |_: Duration, chunk: usize, _: u64| [2_000.0, 1_000.0, 500.0, 800.1][chunk];
    let mut control = controller(job, "artifact").with_oracle(Box::new(oracle));
    drive(&mut control, 1_000.0);
    let sources: Vec<_> = control.chunks().iter().map(|chunk| chunk.source().unwrap()).collect();
    let level = |level| Source::Level { level, segments: 1 };
    assert_eq!(sources, [level(0), level(1), Source::Text, level(1)]);
    assert!(control.remark().is_none());
    let job = Job::new(vec![chunk(&[(400, 0.1)], None)], ms(1_000)).unwrap();
    let mut control = controller(job, "artifact");
    control.poll(ms(0));
    assert!(control.remark().unwrap().contains("last transfer"));
}

#[test]
fn plan_takes_text_from_the_front_and_the_best_levels_that_fit() {
    // 1000 bytes a second, a second: two chunks as text in 800 ms, beside two of three levels.
    let sizes = [(600, 0.1), (450, 0.2), (100, 1.0)];
    let job = Job::new(vec![chunk(&sizes, Some(400)); 4], ms(1_000)).unwrap();
    let policy = policies().build("plan(spread=0;floor=0)").unwrap();
    let mut control = Controller::new(job, policy, Box::new(Certain(1_000.0)));
    assert_eq!(control.poll(ms(0)), Action::Recompute { chunk: 0 });
    let fetch = fetched(control.poll(ms(0)));
    assert_eq!((fetch.chunk, fetch.level), (2, 1));
    control.received(ms(400), fetch.transfer);
    control.recomputed(ms(400), 0);
    control.decoded(ms(410), 2, 1, 0);
    assert_eq!(control.poll(ms(410)), Action::Recompute { chunk: 1 });
    let fetch = fetched(control.poll(ms(410)));
    assert_eq!((fetch.chunk, fetch.level), (3, 1), "slack of 40 ms is not enough for 600 bytes");
}

#[test]
fn plan_abandons_what_will_not_arrive_and_upgrades_in_spare_time() {
    let sizes = [(800, 0.1), (100, 1.0)];
    let job = Job::new(vec![chunk(&sizes, None); 1], ms(1_000)).unwrap();
    let mut control = controller(job, "plan(first=0)");
    let fetch = fetched(control.poll(ms(0)));
    assert_eq!(fetch.level, 0);
    // 200 bytes a second: 800 would take four.
    for time in [100, 200] {
        control.progress(ms(time), fetch.transfer, time / 5);
    }
    assert_eq!(control.poll(ms(200)), Action::Abandon { transfer: fetch.transfer });
    let fetch = fetched(control.poll(ms(200)));
    assert_eq!((fetch.level, fetch.upgrade), (1, false));
    // The rate comes back: 100 bytes in 20 ms.
    control.received(ms(220), fetch.transfer);
    control.decoded(ms(230), 0, 1, 0);
    let fetch = fetched(control.poll(ms(230)));
    assert_eq!((fetch.level, fetch.upgrade), (0, true));
    // The deadline comes first: what is there is there.
    assert!(control.complete());
    assert_eq!(control.poll(ms(1_000)), Action::Abandon { transfer: fetch.transfer });
    assert_eq!(control.poll(ms(1_000)), Action::Done);
    assert_eq!(control.chunks()[0].present(), Some(1.0));
}

#[test]
fn plan_does_not_begin_text_that_would_be_late_before_it_knows_the_link() {
    // Text of a chunk alone takes longer than there is; a link that is fast enough is found out only by trying.
    let sizes = [(400, 0.1), (100, 0.4)];
    let job = Job::new(vec![chunk(&sizes, Some(1_500)); 4], ms(1_000)).unwrap();
    let mut control = controller(job, "plan");
    let end = drive(&mut control, 10_000.0);
    assert!(end <= ms(1_000), "{end:?}");
    assert!(control.chunks().iter().all(|chunk| chunk.source() != Some(Source::Text)));

    // A link that carries nothing gets as long as text takes.
    let job = Job::new(vec![chunk(&sizes, Some(1_500)); 4], ms(1_000)).unwrap();
    let mut control = controller(job, "plan");
    fetched(control.poll(ms(0)));
    assert!(matches!(control.poll(ms(0)), Action::Wait { .. }));
    assert_eq!(control.poll(ms(1_500)), Action::Recompute { chunk: 0 });
}

#[test]
fn plan_fetches_bases_before_refinements() {
    let segment = |bytes, distortion| Segment { bytes, distortion, decode: ms(1) };
    let level = Level { segments: vec![segment(100, 1.0), segment(50, 0.5), segment(400, 0.1)] };
    let job = Job::new(vec![Chunk { levels: vec![level], text: None }; 3], ms(1_000)).unwrap();
    let policy = policies().build("plan").unwrap();
    let mut control = Controller::new(job, policy, Box::new(Certain(1_000.0)));
    let mut order = Vec::new();
    let mut now = ms(0);
    while let Action::Fetch(fetch) = control.poll(now) {
        order.push((fetch.chunk, fetch.segment));
        now += ms([100, 50, 400][fetch.segment]);
        control.received(now, fetch.transfer);
        control.decoded(now, fetch.chunk, fetch.level, fetch.segment);
    }
    assert_eq!(order[..3], [(0, 0), (1, 0), (2, 0)]);
    assert!(order[3..6].iter().all(|(_, segment)| *segment == 1), "{order:?}");
    assert!(control.chunks().iter().all(|chunk| chunk.present() <= Some(0.5)));
}

#[test]
fn with_a_constant_rate_and_no_noise_plan_is_optimal() {
    let mut random = Random(5);
    let mut equal = 0;
    for round in 0..200 {
        let n = 1 + random.below(5) as usize;
        let chunks: Vec<Chunk> = (0..n)
            .map(|_| {
                let base = 50 + random.below(150);
                let sizes = [base * 3, base * 2, base].map(|bytes| (bytes, 40.0 / bytes as f64));
                chunk(&sizes, None)
            })
            .collect();
        let total: u64 = chunks.iter().map(|chunk| chunk.levels[2].bytes()).sum();
        let slo = ms(total * (11 + random.below(25)) / 10 + 10);
        // All assignments whose bytes, at a byte a millisecond, arrive 10 ms before the deadline.
        let best = |slo: Duration| {
            let all = (0..3_usize.pow(n as u32)).filter_map(|code| {
                let picks = (0..n).map(|chunk| &chunks[chunk].levels[code / 3_usize.pow(chunk as u32) % 3]);
                let bytes: u64 = picks.clone().map(Level::bytes).sum();
                (ms(bytes + 10) <= slo).then(|| picks.map(Level::distortion).sum::<f64>() / n as f64)
            });
            all.fold(f64::INFINITY, f64::min)
        };
        let job = Job::new(chunks.clone(), slo).unwrap();
        // A miss costs more than anything.
        let policy = policies().build("plan(lambda=100;spread=0;floor=0;upgrade=false)").unwrap();
        let mut control = Controller::new(job, policy, Box::new(Certain(1_000.0)));
        let finish = drive(&mut control, 1_000.0);
        let (got, bound) = (mean(&control), best(slo));
        assert!(finish <= slo, "{round}: {finish:?} {slo:?}");
        assert!(got >= bound - 1e-12, "{round}");
        // Rates are rounded down by up to 2 %, times by a grid step of 1/256 for each chunk.
        assert!(got <= best(slo.mul_f64(0.98 - n as f64 / 256.0)) + 1e-12, "{round}: {got} {bound}");
        equal += usize::from((got - bound).abs() < 1e-12);
    }
    assert!(equal >= 160, "{equal} of 200");
}

/// Whatever happens, the controller ends, and asks only for what there is.
#[test]
fn it_always_ends_and_never_asks_for_what_failed() {
    let specs = [
        "fixed(level=1)",
        "cachegen",
        "artifact",
        "plan",
        "plan(upgrade=false)",
        "plan(abandon=false;first=0)",
    ];
    let mut random = Random(11);
    for round in 0..1_500 {
        let n = random.below(6) as usize;
        let chunks: Vec<Chunk> = (0..n)
            .map(|_| {
                let levels = (0..random.below(4))
                    .map(|_| {
                        let segments = (0..1 + random.below(3)).map(|_| Segment {
                            bytes: [0, 1, 1_000, 1_000, u64::MAX, u64::MAX - 1][random.below(6) as usize],
                            distortion: random.below(3) as f64,
                            decode: [Duration::ZERO, ms(10), Duration::MAX][random.below(3) as usize],
                        });
                        Level { segments: segments.collect() }
                    })
                    .collect::<Vec<_>>();
                let text = (levels.is_empty() || random.below(2) == 0)
                    .then(|| [Duration::ZERO, ms(100), Duration::MAX][random.below(3) as usize]);
                Chunk { levels, text }
            })
            .collect();
        let slo = [Duration::ZERO, ms(500), Duration::MAX][random.below(3) as usize];
        let job = Job::new(chunks, slo).unwrap();
        let spec = specs[random.below(specs.len() as u64) as usize];
        let connections = 1 + random.below(3) as usize;
        let mut control = controller(job, spec).with_connections(connections);
        let mut now = Duration::ZERO;
        let mut running: Vec<Fetch> = Vec::new();
        let mut decoding: Vec<Fetch> = Vec::new();
        let mut decoded: Vec<(usize, usize)> = Vec::new();
        let mut computing: Option<usize> = None;
        let mut bad: Vec<(usize, usize, usize)> = Vec::new();
        let mut text_failed: Vec<usize> = Vec::new();
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 5_000, "{round} {spec} does not end: {control:?}");
            match control.poll(now) {
                Action::Fetch(fetch) => {
                    assert!(control.job().segment(fetch.chunk, fetch.level, fetch.segment).is_some());
                    let before = |b: &&(usize, usize, usize)| {
                        b.0 == fetch.chunk && b.1 == fetch.level && b.2 <= fetch.segment
                    };
                    assert!(!bad.iter().any(|b| before(&b)), "{round} {spec}: {fetch:?} failed before");
                    running.push(fetch);
                    assert!(running.len() <= connections);
                    continue;
                }
                Action::Recompute { chunk } => {
                    assert!(control.job().chunks()[chunk].text.is_some() && !text_failed.contains(&chunk));
                    assert!(control.chunks()[..chunk].iter().all(|c| c.present().is_some()));
                    assert!(computing.replace(chunk).is_none());
                    continue;
                }
                Action::Abandon { transfer } => {
                    running.retain(|fetch| fetch.transfer != transfer);
                    continue;
                }
                Action::Done => break,
                Action::Wait { until } => {
                    let idle = running.is_empty() && decoding.is_empty() && computing.is_none();
                    assert!(!idle, "{round} {spec} waits for nothing: {control:?}");
                    assert!(until.is_none_or(|until| until > now), "{round} {spec}");
                }
            }
            now += ms(random.below(60));
            match random.below(6) {
                0 | 1 if !running.is_empty() => {
                    let fetch = running.swap_remove(random.below(running.len() as u64) as usize);
                    control.received(now, fetch.transfer);
                    // What follows a segment that is known to be bad is of no use.
                    if !bad.iter().any(|b| (b.0, b.1) == (fetch.chunk, fetch.level) && b.2 <= fetch.segment) {
                        decoding.push(fetch);
                    }
                }
                2 if !running.is_empty() => {
                    let fetch = running.swap_remove(0);
                    let failure = if random.below(2) == 0 { Failure::Unusable } else { Failure::Interrupted };
                    if failure == Failure::Unusable {
                        bad.push((fetch.chunk, fetch.level, fetch.segment));
                    }
                    control.failed(now, fetch.transfer, failure);
                }
                3 if !decoding.is_empty() => {
                    let next = |of: &Fetch| {
                        let level = |d: &&(usize, usize)| **d == (of.chunk, of.level);
                        decoded.iter().filter(level).count() == of.segment
                    };
                    let Some(index) = decoding.iter().position(next) else { continue };
                    let fetch = decoding.remove(index);
                    if random.below(4) == 0 {
                        bad.push((fetch.chunk, fetch.level, fetch.segment));
                        decoding.retain(|d| (d.chunk, d.level) != (fetch.chunk, fetch.level));
                        control.decode_failed(now, fetch.chunk, fetch.level, fetch.segment);
                    } else {
                        decoded.push((fetch.chunk, fetch.level));
                        control.decoded(now, fetch.chunk, fetch.level, fetch.segment);
                    }
                }
                4 => {
                    if let Some(chunk) = computing.take() {
                        if random.below(3) == 0 {
                            text_failed.push(chunk);
                            control.recompute_failed(now, chunk);
                        } else {
                            control.recomputed(now, chunk);
                        }
                    }
                }
                _ => {
                    for fetch in &running {
                        control.progress(now, fetch.transfer, random.below(3_000));
                    }
                }
            }
        }
        // What was done with is forgotten, and nothing is left open.
        for (index, chunk) in control.chunks().iter().enumerate() {
            assert_ne!(chunk.present().is_some(), control.lost().any(|lost| lost == index), "{round} {spec}");
        }
        assert_eq!(control.poll(now), Action::Done);
    }
}

#[test]
fn a_dead_link_ends_in_text_or_in_loss() {
    for (text, lost) in [(Some(10), 0), (None, 2)] {
        for spec in ["fixed(level=0)", "cachegen", "artifact", "plan"] {
            let job = Job::new(vec![chunk(&[(100, 0.1), (100, 0.1)], text); 2], ms(15)).unwrap();
            let mut control = controller(job, spec);
            let mut now = ms(0);
            for _ in 0..20_000 {
                match control.poll(now) {
                    Action::Done => break,
                    Action::Recompute { chunk } => control.recomputed(now + ms(10), chunk),
                    Action::Wait { until } => now = until.unwrap_or(now + ms(20)),
                    _ => {}
                }
            }
            assert_eq!(control.poll(now), Action::Done, "{spec}");
            assert_eq!(control.lost().count(), lost, "{spec}");
        }
    }
}

#[test]
fn events_that_make_no_sense_change_nothing() {
    let job = Job::new(vec![chunk(&[(100, 0.1)], Some(10))], ms(100)).unwrap();
    let mut control = controller(job, "fixed");
    let fetch = fetched(control.poll(ms(10)));
    control.decoded(ms(11), 0, 0, 0);
    control.decoded(ms(11), 7, 7, 7);
    control.decode_failed(ms(11), 7, 0, 0);
    control.recomputed(ms(11), 0);
    control.recomputed(ms(11), 9);
    control.recompute_failed(ms(11), 9);
    control.progress(ms(5), fetch.transfer, u64::MAX);
    assert!(!control.complete());
    control.received(ms(20), fetch.transfer);
    control.received(ms(20), fetch.transfer);
    control.failed(ms(20), fetch.transfer, Failure::Unusable);
    control.decoded(ms(21), 0, 0, 0);
    assert!(control.complete());
    assert_eq!(control.poll(ms(21)), Action::Done);
}

#[test]
fn a_third_party_policy_is_a_plug_in_and_cannot_hang_a_request() {
    #[derive(Debug)]
    struct Idle;
    impl Policy for Idle {
        fn decide(&mut self, view: &View<'_>) -> Move {
            // Nothing that exists.
            if view.now.is_zero() { Move::Fetch { chunk: 99, level: 99 } } else { Move::Wait(None) }
        }
    }
    const PLUGIN: Plugin<dyn Policy> = Plugin {
        name: "acme.idle",
        origin: "acme",
        summary: "does nothing",
        usage: "acme.idle",
        build: |_| Ok(Box::new(Idle)),
    };
    let registry = policies().with(PLUGIN).unwrap();
    let job = Job::new(vec![chunk(&[(100, 0.1), (50, 0.2)], None); 3], ms(100)).unwrap();
    let policy = registry.build("acme.idle").unwrap();
    let mut control = Controller::new(job, policy, estimators().build("last").unwrap());
    drive(&mut control, 1_000.0);
    assert!((mean(&control) - 0.2).abs() < 1e-12);
    assert!(registry.with(PLUGIN).unwrap_err().to_string().contains("registered twice"));
}
