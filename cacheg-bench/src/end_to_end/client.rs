//! The client: a process that has the model in memory and makes one request after the other.

use std::collections::HashMap;
use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cacheg::net::fetch::{FetchOptions, Fetched, Got, MemoryReceiver, Recompute, fetch};
use cacheg::net::store::{ContextId, Store};
use cacheg::{Error, Profile, Registry, Result};
use cacheg_bench::llm::{KvState, Model, Prefill, argmax};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::median;
use super::protocol::{Answer, Ask, Ready, Setup, Text};
use crate::quality::metrics::{Damage, Predictions};
use crate::quality::reading::predictions;

/// A request is given up so long after its deadline: late is late, but how late is worth knowing.
const GRACE: Duration = Duration::from_secs(120);

/// What is kept free before a deadline for what comes behind the last chunk, in units of what that took.
const AFTER: f64 = 1.25;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// GGUF file, or folder with config.json and safetensors files
    model: PathBuf,
}

/// Reads requests from standard input, one a line, and answers each with a line, until the input ends.
pub(crate) fn run(args: &Args) -> Result<()> {
    let model = Arc::new(Model::open(&args.model, &|_, _| ())?);
    let mut lines = std::io::stdin().lock().lines();
    let Some(setup) = hear::<Setup>(&mut lines)? else { return Ok(()) };
    let runtime = crate::runtime()?;
    let (mut client, ready) = Client::new(model, setup)?;
    say(&ready)?;
    while let Some(ask) = hear::<Ask>(&mut lines)? {
        say(&runtime.block_on(client.request(&ask))?)?;
    }
    Ok(())
}

fn hear<T: DeserializeOwned>(lines: &mut std::io::Lines<std::io::StdinLock<'_>>) -> Result<Option<T>> {
    let failed = |source| Error::Io { context: "cannot read standard input".into(), source };
    let Some(line) = lines.next().transpose().map_err(failed)? else { return Ok(None) };
    serde_json::from_str(&line).map(Some).map_err(|e| Error::data(format!("not a request: {e}")))
}

fn say(what: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(what).map_err(|e| Error::data(e.to_string()))?;
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{line}").and_then(|()| out.flush());
    written.map_err(|source| Error::Io { context: "cannot write to standard output".into(), source })
}

/// A text that the model has read.
struct Read {
    continuation: Vec<u32>,
    reference: Predictions,
}

struct Client {
    model: Arc<Model>,
    registry: Arc<Registry>,
    profile: Option<Arc<Profile>>,
    texts: Vec<Read>,
    /// Time from a KV cache in the receiver to the first token: to be kept free before a deadline.
    after_s: f64,
    /// Open connections, as a process that serves has them.
    stores: HashMap<String, Store>,
    /// By text and the levels that came: the same levels are the same KV cache.
    damage: HashMap<(usize, Vec<String>), Damage>,
}

impl Client {
    fn new(model: Arc<Model>, setup: Setup) -> Result<(Self, Ready)> {
        let profile = match &setup.profile {
            Some(path) => {
                let bytes = std::fs::read(path).map_err(|e| Error::io("cannot read", path, e))?;
                Some(Arc::new(Profile::from_bytes(bytes)?))
            }
            None => None,
        };
        let (mut texts, mut prefill_s, mut perplexity) = (Vec::new(), Vec::new(), Vec::new());
        let (mut after, mut tokens) = (Vec::new(), Vec::new());
        for Text { tokens: context, continuation } in setup.texts {
            let first = *continuation.first().ok_or_else(|| Error::data("nothing to read on"))?;
            let (mut kv, start) = (KvState::new(model.geometry()), Instant::now());
            model.prefill(&context, &mut kv, None, &|_, _| ())?;
            prefill_s.push(start.elapsed().as_secs_f64());
            let reference = predictions(&model, &continuation, &mut kv)?;
            perplexity.push(reference.damage(&reference, &continuation[1..]).perplexity);
            let cache = kv.to_cache()?;
            for _ in 0..3 {
                let start = Instant::now();
                let mut kv = model.state_of(&cache.view())?;
                let handed = start.elapsed().as_secs_f64();
                token(&model, first, &mut kv)?;
                after.push(start.elapsed().as_secs_f64());
                tokens.push(start.elapsed().as_secs_f64() - handed);
            }
            texts.push(Read { continuation, reference });
        }
        let after_s = median(&after);
        let client = Self {
            model,
            registry: Arc::new(cacheg::builtins()?),
            profile,
            texts,
            after_s,
            stores: HashMap::new(),
            damage: HashMap::new(),
        };
        Ok((client, Ready { prefill_s, token_s: median(&tokens), perplexity }))
    }

    async fn request(&mut self, ask: &Ask) -> Result<Answer> {
        let store = match self.stores.get(&ask.url) {
            Some(store) => store.clone(),
            None => {
                let store = crate::publish::open(&ask.url)?;
                self.stores.insert(ask.url.clone(), store.clone());
                store
            }
        };
        let id = ContextId::new(&ask.context)?;
        let text = self.texts.get(ask.text).ok_or_else(|| Error::data("no such text"))?;
        let first = text.continuation.first().copied().unwrap_or_default();
        let start = Instant::now();
        let (mut kv, fetch_s, got) = match &ask.policy {
            None => {
                let kv = self.recompute(&store, &id).await?;
                (kv, start.elapsed().as_secs_f64(), None)
            }
            Some(policy) => {
                let (cache, fetched) = self.fetch(&store, &id, policy, ask).await?;
                let fetch_s = start.elapsed().as_secs_f64();
                (self.model.state_of(&cache.view())?, fetch_s, Some(fetched))
            }
        };
        let hand_over_s = start.elapsed().as_secs_f64() - fetch_s;
        let tokens = kv.tokens();
        token(&self.model, first, &mut kv)?;
        let ttft_s = start.elapsed().as_secs_f64();
        kv.truncate(tokens);

        let (levels, bytes, faults) = match &got {
            None => (vec!["text".to_owned()], 0, Vec::new()),
            Some(fetched) => (levels(fetched)?, fetched.bytes, fetched.faults.clone()),
        };
        if let (Some(path), Some(fetched)) = (&ask.timeline, &got) {
            let svg = cacheg::timeline::svg(fetched, ask.slo_s.map(|slo| self.due(slo)))?;
            std::fs::write(path, svg).map_err(|e| Error::io("cannot write", path, e))?;
        }
        let key = (ask.text, levels.clone());
        let damage = match self.damage.get(&key) {
            Some(damage) => *damage,
            None => {
                let read = predictions(&self.model, &text.continuation, &mut kv)?;
                let damage = text.reference.damage(&read, &text.continuation[1..]);
                self.damage.insert(key, damage);
                damage
            }
        };
        let Damage { kl, top1_percent, delta_ppl_percent, .. } = damage;
        Ok(Answer {
            text: ask.text,
            ttft_s,
            fetch_s,
            hand_over_s,
            bytes,
            levels,
            kl,
            top1_percent,
            delta_ppl_percent,
            faults,
        })
    }

    /// When the KV cache has to be there for the first token to be in time.
    fn due(&self, slo_s: f64) -> Duration {
        Duration::try_from_secs_f64(slo_s - AFTER * self.after_s).unwrap_or(Duration::from_millis(1))
    }

    /// From text alone: what a request costs without anything stored.
    async fn recompute(&self, store: &Store, id: &ContextId) -> Result<KvState> {
        let manifest = store.manifest(id).await?;
        let tokens = store.tokens(&manifest).await?;
        let tokens = tokens.ok_or_else(|| Error::data("the context has no text"))?;
        let mut kv = KvState::new(self.model.geometry());
        self.model.prefill(&tokens, &mut kv, None, &|_, _| ())?;
        Ok(kv)
    }

    async fn fetch(
        &self,
        store: &Store,
        id: &ContextId,
        policy: &str,
        ask: &Ask,
    ) -> Result<(cacheg::KvCache, Fetched)> {
        let mut options = FetchOptions::default();
        options.slo = ask.slo_s.map(|slo| self.due(slo));
        options.grace = GRACE;
        options.policy = Some(policy.to_owned());
        // The time until a deadline is used for better levels; the first token may come when it is due, not earlier.
        options.asap = ask.slo_s.is_none();
        options.profile.clone_from(&self.profile);
        options.recompute = ask.recompute_s.and_then(|s| Duration::try_from_secs_f64(s).ok());
        let model =
            options.recompute.map(|_| Box::new(Prefill::new(self.model.clone(), 0)) as Box<dyn Recompute>);
        let receiver = Arc::new(Mutex::new(MemoryReceiver::default()));
        let fetched = fetch(store, &self.registry, id, &options, receiver.clone(), model).await?;
        if fetched.complete.is_none() {
            return Err(Error::unavailable(format!("not all chunks came: {}", fetched.faults.join("; "))));
        }
        let cache = receiver.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok((cache.ok_or_else(|| Error::data("nothing was received"))?, fetched))
    }
}

/// The first token: what the last one of the request predicts.
fn token(model: &Model, last: u32, kv: &mut KvState) -> Result<u32> {
    let hidden = model.forward(&[last], kv)?;
    let logits = model.logits(&hidden)?.flatten_all().and_then(|row| row.to_vec1::<f32>());
    Ok(argmax(&logits.map_err(|e| Error::data(e.to_string()))?))
}

fn levels(fetched: &Fetched) -> Result<Vec<String>> {
    let name = |got: &Got| match got {
        Got::Level { level, .. } => Ok(level.clone()),
        Got::Text => Ok("text".to_owned()),
        _ => Err(Error::data("a chunk is missing")),
    };
    fetched.chunks.iter().map(name).collect()
}
