use super::*;
use cacheg_net::control::{Chunk, Level};

fn steady(gbps: f64) -> Link {
    Link::Series(Trace::steady(gbps * 1e9 / 8.0).unwrap(), Duration::ZERO)
}

fn simulate(job: &Job, spec: &str, link: &Link) -> Outcome {
    let (policy, estimator) = build(spec).unwrap();
    run::run(job, policy, estimator, link)
}

fn args(text: &str) -> Args {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }
    let words = std::iter::once("stream").chain(text.split_whitespace());
    <Cli as clap::Parser>::try_parse_from(words).unwrap().args
}

#[test]
fn fixed_on_a_steady_link_is_what_the_sum_says() {
    let job = ladder::job(Duration::from_millis(1_000)).unwrap();
    let outcome = simulate(&job, "fixed(level=1)", &steady(4.0));
    let bytes = 10 * ladder::bytes(2.6);
    let seconds = bytes as f64 / 0.5e9 + 0.04;
    assert!((outcome.finish.as_secs_f64() - seconds).abs() < 1e-6, "{outcome:?}");
    assert_eq!((outcome.missed, outcome.bytes, outcome.texts), (false, bytes, 0));
    assert!((outcome.distortion - ladder::kl(2.6)).abs() < 1e-12);
}

#[test]
fn cachegen_on_a_steady_link_goes_over_to_text_as_soon_as_that_fits() {
    let job = ladder::job(Duration::from_millis(1_500)).unwrap();
    let outcome = simulate(&job, "cachegen", &steady(5.0));
    // 51 ms for the medium level, 67 ms for each of the best: after four chunks 6 × 0.2 s fit.
    let seconds = (ladder::bytes(2.6) + 3 * ladder::bytes(3.4)) as f64 / 0.625e9 + 0.04 + 1.2;
    assert_eq!((outcome.texts, outcome.missed), (6, false));
    assert!((outcome.finish.as_secs_f64() - seconds).abs() < 1e-6, "{outcome:?}");
    let kl = (ladder::kl(2.6) + 3.0 * ladder::kl(3.4)) / 10.0;
    assert!((outcome.distortion - kl).abs() < 1e-12);
}

#[test]
fn the_artifact_shares_the_time_equally() {
    // 100 ms for each chunk. 3 Gbit/s: 111 ms, 85 ms, 62 ms; 1 Gbit/s: text.
    let job = ladder::job(Duration::from_millis(1_000)).unwrap();
    let rates = [3e9 / 8.0, 1e9 / 8.0].into_iter().cycle().take(10).collect();
    let outcome = simulate(&job, "artifact", &Link::PerChunk(rates));
    assert_eq!(outcome.texts, 5);
    assert!((outcome.distortion - ladder::kl(2.6) / 2.0).abs() < 1e-12);
    assert_eq!(outcome.bytes, 5 * ladder::bytes(2.6));
}

#[test]
fn the_oracle_agrees_with_brute_force() {
    // Four chunks, every assignment of levels or text, every order of fetching.
    let levels = vec![
        Level::new(400, 0.1, Duration::from_millis(40)),
        Level::new(300, 0.3, Duration::from_millis(40)),
        Level::new(100, 1.0, Duration::from_millis(40)),
    ];
    let mut random = Random::new(Purpose::Tune, 7, 0, 0);
    for _ in 0..300 {
        let slo = Duration::from_millis(200 + random.below(900) as u64);
        let chunk = Chunk { levels: levels.clone(), text: Some(Duration::from_millis(200)) };
        let job = Job::new(vec![chunk; 4], slo).unwrap();
        let pieces = (0..12).map(|_| (Duration::from_millis(100), random.uniform(0.0, 3_000.0)));
        let link = Link::Series(Trace::new(pieces.collect::<Vec<_>>()).unwrap(), Duration::ZERO);
        let mut best = f64::INFINITY;
        for code in 0..256_usize {
            let picks: Vec<usize> = (0..4).map(|chunk| code >> (2 * chunk) & 3).collect();
            for order in ORDERS {
                if finish(&picks, order, &levels, &link).is_some_and(|end| end <= slo) {
                    let sum: f64 =
                        picks.iter().map(|pick| levels.get(*pick).map_or(0.0, Level::distortion)).sum();
                    best = best.min(sum / 4.0);
                }
            }
        }
        let bound = oracle::bound(&job, &link);
        assert_eq!(bound.met, best.is_finite());
        assert!(!bound.met || (bound.distortion - best).abs() < 1e-12, "{bound:?} {best}");
    }
}

const ORDERS: [[usize; 4]; 24] = {
    let mut orders = [[0; 4]; 24];
    let mut count = 0;
    let mut code = 0;
    while code < 256 {
        let order = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 & 3];
        if 1 << order[0] | 1 << order[1] | 1 << order[2] | 1 << order[3] == 15 {
            orders[count] = order;
            count += 1;
        }
        code += 1;
    }
    orders
};

/// When all is there, with text (pick 3) in the order of the context, each after all chunks before it.
fn finish(picks: &[usize], order: [usize; 4], levels: &[Level], link: &Link) -> Option<Duration> {
    let mut present = [Duration::ZERO; 4];
    let (mut sent, mut decoder) = (0, Duration::ZERO);
    for chunk in order {
        if let Some(level) = levels.get(picks[chunk]) {
            sent += level.bytes();
            decoder = decoder.max(link.time_to_send(Duration::ZERO, 0, sent)?) + level.decode();
            present[chunk] = decoder;
        }
    }
    let mut processor = Duration::ZERO;
    for chunk in 0..4 {
        if picks[chunk] == 3 {
            let before = present[..chunk].iter().max().copied().unwrap_or_default();
            processor = processor.max(before) + Duration::from_millis(200);
            present[chunk] = processor;
        }
    }
    present.into_iter().max()
}

#[test]
fn no_policy_beats_the_oracle() {
    let args = args("--runs 6 --purpose tune");
    for case in cases(&args, None) {
        let (job, link) = make(&args, &case, None).unwrap();
        let bound = oracle::bound(&job, &link);
        for spec in ["plan", "cachegen", "artifact", "fixed(level=0)"] {
            let outcome = simulate(&job, spec, &link);
            assert!(outcome.missed || bound.met, "{spec} {:?} {outcome:?}", case.group);
            let worse = outcome.missed || outcome.distortion >= bound.distortion - 1e-9;
            assert!(worse, "{spec} {:?} {outcome:?} {bound:?}", case.group);
        }
    }
}

#[test]
fn every_policy_ends_on_hopeless_links() {
    for (slo, rate) in [(0, 1e9), (1_000, 0.0), (0, 0.0), (500, 1.0), (1_000, 1e14)] {
        let job = ladder::job(Duration::from_millis(slo)).unwrap();
        let link = Link::Series(Trace::steady(rate).unwrap(), Duration::ZERO);
        for spec in POLICIES {
            let outcome = simulate(&job, spec, &link);
            assert!(outcome.actions < 100_000, "{spec} {outcome:?}");
            assert!(outcome.missed || slo > 0, "{spec} {outcome:?}");
            // Text is always there; other policies go on trying the link.
            let turns_to_text = spec.starts_with("plan") && !spec.contains("abandon=false");
            let patient = outcome.finish < Duration::from_secs(10);
            assert!(patient || !turns_to_text, "{spec} on {rate}: {outcome:?}");
        }
    }
    let none = Job::new(vec![], Duration::ZERO).unwrap();
    assert!(!simulate(&none, "plan", &steady(1.0)).missed);
}

#[test]
fn the_same_seed_gives_the_same_table() {
    let args = args("--runs 2 --seed 9");
    let run = || {
        let cases = cases(&args, None);
        let outcomes: Vec<Outcome> = cases
            .par_iter()
            .map(|case| {
                let (job, link) = make(&args, case, None).unwrap();
                simulate(&job, "plan", &link)
            })
            .collect();
        outcomes
    };
    assert_eq!(run(), run());
}

#[test]
fn tables_and_pictures_name_every_policy() {
    let args = args("--runs 1");
    let cases = cases(&args, None);
    let jobs: Vec<(Job, Link)> = cases.iter().map(|case| make(&args, case, None).unwrap()).collect();
    let bounds: Vec<Bound> = jobs.iter().map(|(job, link)| oracle::bound(job, link)).collect();
    let mut runs = vec![Run::oracle(&bounds)];
    for name in ["cachegen", "plan", "plan+ewma(half-life=1)"] {
        let outcomes = jobs.iter().map(|(job, link)| simulate(job, name, link)).collect();
        runs.push(Run { name: name.into(), outcomes });
    }
    let groups: Vec<Group> = cases.iter().map(|case| case.group).collect();
    let rows = table::rows(&groups, &bounds, &runs);
    assert_eq!(rows.len(), 4 * (1 + 1 + 8 + 5));
    let text = table::text(&rows);
    for svg in [plot::misses(&rows, "a <caption>").unwrap(), plot::distortion(&rows, "").unwrap()] {
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts: Vec<&str> = document.descendants().filter_map(|node| node.text()).map(str::trim).collect();
        for run in &runs {
            assert!(texts.contains(&run.name.as_str()) && text.contains(&run.name), "{}", run.name);
        }
    }
    assert!(text.contains("step-drop") && text.contains("1.25"), "{text}");
    assert!(plot::misses(&[], "").is_ok());
}

#[test]
fn specs_that_are_wrong_say_so() {
    assert!(build("plan+nothing").unwrap_err().to_string().contains("harmonic"));
    assert!(build("plan(lamda=1)").unwrap_err().to_string().contains("lambda"));
    assert!(build("plan(lambda=-1)").is_err());
}
