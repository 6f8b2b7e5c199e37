//! Checks of select stages.

use std::sync::Arc;

use super::bind::{build, concurrently};
use super::models::{Model, PLANES, models};
use super::suite::{Case, Within, ensure, survive};
use super::{Check, Failure, Random, Suite};
use crate::importance::kv_heads;
use crate::{BoundSelect, Geometry, Importance, Select, SelectCx};

/// Tokens of the context; chunks are parts of it.
const CONTEXT: usize = 1_100;

/// What heads may have seen.
const KINDS: [fn(&mut Random, usize) -> f32; 5] = [
    // Few tokens get nearly everything, as in real models.
    |random, token| if random.below(20) == 0 || token == 0 { 40.0 * random.normal().abs() } else { 0.01 },
    |_, _| 0.0,
    |_, token| token as f32,
    |_, token| (CONTEXT - token) as f32,
    |random, _| [0.0, f32::MIN_POSITIVE, 1.0, f32::MAX][random.below(4)],
];

fn importance(geometry: &Geometry, of: fn(&mut Random, usize) -> f32) -> Result<Importance, Failure> {
    let mut random = Random::new(7);
    let mut importance = Importance::new(CONTEXT, Some(64));
    for heads in kv_heads(geometry) {
        let mut sums = || -> Vec<f32> {
            (0..heads as usize * CONTEXT).map(|at| of(&mut random, at % CONTEXT)).collect()
        };
        let (accumulated, recent) = (sums(), sums());
        importance.push_layer(heads as usize, &accumulated, &recent)?;
    }
    Ok(importance)
}

/// Names, usage lines and settings are as they should be.
///
/// # Errors
/// If not.
pub fn settings(suite: &Suite) -> Check {
    super::settings::check::<dyn Select>(suite)
}

/// Chosen tokens are ascending, in the chunk, and as many as announced, in chunks of any length and place. Without
/// importance a stage may choose or fail, but not panic.
///
/// # Errors
/// If not.
pub fn selects(suite: &Suite) -> Check {
    each(suite, |model, bound, _| {
        for of in KINDS {
            let importance = importance(&model.geometry, of)?;
            for (first, tokens) in chunks() {
                choose(bound, model, Some(&importance), first, tokens)
                    .within(|| format!("{tokens} tokens from {first}"))?;
            }
        }
        for (first, tokens) in chunks() {
            // Only a stage that needs nothing may go on without.
            let _ = survive("select without importance", || choose(bound, model, None, first, tokens))?;
        }
        Ok(())
    })
}

/// Equal inputs give equal tokens, on further calls, by other instances and on other threads.
///
/// # Errors
/// If not.
pub fn deterministic(suite: &Suite) -> Check {
    each(suite, |model, bound, again| {
        let importance = importance(&model.geometry, KINDS[0])?;
        let all = |bound: &dyn BoundSelect| -> Result<Vec<Vec<u32>>, Failure> {
            let all = chunks().map(|(first, tokens)| choose(bound, model, Some(&importance), first, tokens));
            all.collect::<Result<Vec<_>, _>>().map(|all| all.concat())
        };
        let want = all(bound)?;
        ensure(all(bound)? == want, || "a second call chooses other tokens".to_owned())?;
        ensure(all(&*again()?)? == want, || "a second instance chooses other tokens".to_owned())?;
        for got in concurrently(|| all(bound))? {
            ensure(got == want, || "another thread chooses other tokens".to_owned())?;
        }
        Ok(())
    })
}

/// No importance makes it panic, nor does any number of tokens.
///
/// # Errors
/// If one does.
pub fn survives(suite: &Suite) -> Check {
    each(suite, |model, bound, _| {
        for of in KINDS {
            let importance = importance(&model.geometry, of)?;
            for (first, tokens) in chunks() {
                survive("select", || choose(bound, model, Some(&importance), first, tokens))??;
            }
        }
        for tokens in [1, 1 << 20, u32::MAX as usize] {
            let kept = survive("kept", || bound.kept(tokens))?;
            ensure((1..=tokens).contains(&kept), || format!("keeps {kept} of {tokens} tokens"))?;
        }
        Ok(())
    })
}

/// First token and number of tokens.
fn chunks() -> impl Iterator<Item = (usize, usize)> {
    [(0, 1), (5, 1), (0, 2), (0, 3), (1, 7), (0, 64), (100, 65), (3, 1_000), (0, CONTEXT)].into_iter()
}

/// The tokens of all heads, checked.
fn choose(
    bound: &dyn BoundSelect,
    model: &Model,
    importance: Option<&Importance>,
    first: usize,
    tokens: usize,
) -> Result<Vec<Vec<u32>>, Failure> {
    let kept = bound.kept(tokens);
    ensure((1..=tokens).contains(&kept), || format!("keeps {kept} of {tokens} tokens"))?;
    let mut all = Vec::new();
    for (layer, heads) in kv_heads(&model.geometry).enumerate() {
        for head in 0..heads as usize {
            let cx = SelectCx::new(layer, head, first..first + tokens, 1000 + first as u64, importance);
            // Neither of them is a good answer as it is, unless one token is all there is.
            let [mut a, mut b] = [vec![u32::MAX; kept], vec![0; kept]];
            bound.select(&cx, &mut a)?;
            bound.select(&cx, &mut b)?;
            ensure(a == b, || {
                format!("two calls differ, or what is kept is not overwritten whole: {a:?}, {b:?}")
            })?;
            let ascending = a.windows(2).all(|pair| pair[0] < pair[1]);
            ensure(ascending && a.iter().all(|token| (*token as usize) < tokens), || {
                format!("tokens that are not ascending, or beyond the chunk: {a:?}")
            })?;
            all.push(a);
        }
    }
    Ok(all)
}

/// Makes a further instance.
type Again<'a> = &'a dyn Fn() -> Result<Box<dyn BoundSelect>, Failure>;

/// Runs a check for every spec and model.
fn each(suite: &Suite, mut check: impl FnMut(&Model, &dyn BoundSelect, Again<'_>) -> Check) -> Check {
    let models = models()?;
    let mut checked = 0;
    for case in &suite.cases()? {
        for model in &models {
            let place = || format!("{} on `{}`", case.text, model.name);
            let again = || bind(suite, case, model);
            let bound = again();
            if suite.refuses_to_bind(model.name, &PLANES[0]) {
                ensure(bound.is_err(), || "binds, which it should refuse".to_owned()).within(place)?;
                continue;
            }
            bound.and_then(|bound| check(model, &*bound, &again)).within(place)?;
            checked += 1;
        }
    }
    ensure(checked > 0, || "the stage refuses everything".to_owned())
}

fn bind(suite: &Suite, case: &Case, model: &Model) -> Result<Box<dyn BoundSelect>, Failure> {
    let stage: Arc<dyn Select> = build(suite, &case.config)?;
    survive("bind", || stage.bind(&model.geometry))?.within(|| "bind".to_owned())
}
