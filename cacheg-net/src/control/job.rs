//! What is to be fetched: chunks, the levels each can be had at, and the deadline.

use std::time::Duration;

use cacheg_core::{Error, Result};

/// More chunks than this in one request are refused: 64 million tokens at the default chunk.
const MAX_CHUNKS: usize = 1 << 16;
/// More levels of a chunk, or segments of a level, than this are refused.
const MAX_LEVELS: usize = 64;

/// A piece of a level that is fetched and decoded by itself.
///
/// A discrete level has one. A progressive level has a base and refinements, each useless without those before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Segment {
    /// Bytes on the wire.
    pub bytes: u64,
    /// Distortion of the chunk once this segment and those before it are decoded. Any unit that adds up over chunks
    /// (KL divergence per token, say); not negative.
    pub distortion: f64,
    /// Time to decode it, once it is there.
    pub decode: Duration,
}

/// One quality at which a chunk can be had: a run of segments.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Base first.
    pub segments: Vec<Segment>,
}

impl Level {
    /// A discrete level: one segment.
    pub fn new(bytes: u64, distortion: f64, decode: Duration) -> Self {
        Self { segments: vec![Segment { bytes, distortion, decode }] }
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.bytes))
    }

    /// Distortion when all segments are there.
    pub fn distortion(&self) -> f64 {
        self.segments.last().map_or(f64::INFINITY, |segment| segment.distortion)
    }

    /// Time to decode all segments.
    pub fn decode(&self) -> Duration {
        self.segments.iter().fold(Duration::ZERO, |sum, segment| sum.saturating_add(segment.decode))
    }
}

/// One chunk: its levels, best first as in a store, and whether it can be recomputed from text.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// Level 0 is best.
    pub levels: Vec<Level>,
    /// Time in which the model recomputes the chunk from its tokens, on top of all chunks before it, if it can. It
    /// costs no bytes, has no distortion, and runs while other chunks are on the wire, one chunk at a time.
    pub text: Option<Duration>,
}

/// A request: its chunks in the order of the context, and when all of them must be decoded.
///
/// Parsed, not validated: a `Job` has finite distortions, at least one way to get each chunk, and bounded counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    chunks: Vec<Chunk>,
    slo: Duration,
    miss: f64,
}

impl Job {
    /// A job. A missed deadline is held to be as bad as all chunks at their worst level: see
    /// [`with_miss`](Self::with_miss).
    ///
    /// # Errors
    /// If a chunk has neither levels nor text, a level has no segments, a distortion is negative or not finite, or
    /// there are more than 65,536 chunks, or 64 levels of a chunk or segments of a level.
    pub fn new(chunks: Vec<Chunk>, slo: Duration) -> Result<Self> {
        if chunks.len() > MAX_CHUNKS {
            return Err(Error::Limit(format!(
                "{} chunks in one request, at most {MAX_CHUNKS}",
                chunks.len()
            )));
        }
        for (index, chunk) in chunks.iter().enumerate() {
            check(chunk).map_err(|error| error.at(format!("chunk {index}")))?;
        }
        let worst = |chunk: &Chunk| {
            let all = chunk.levels.iter().flat_map(|level| &level.segments);
            all.map(|segment| segment.distortion).fold(0.0, f64::max)
        };
        let miss = chunks.iter().map(worst).sum::<f64>().min(f64::MAX);
        Ok(Self { chunks, slo, miss })
    }

    /// The same with another price of missing the deadline, in units of distortion summed over chunks. Policies that
    /// weigh risk against quality (`plan`) multiply it by a factor of their own.
    ///
    /// # Errors
    /// If it is negative or not finite.
    pub fn with_miss(mut self, miss: f64) -> Result<Self> {
        if !(miss.is_finite() && miss >= 0.0) {
            return Err(Error::setting(format!("a missed deadline cannot cost {miss}")));
        }
        self.miss = miss;
        Ok(self)
    }

    /// The chunks, in the order of the context.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// When all chunks must be decoded or recomputed, since the request's start.
    pub fn slo(&self) -> Duration {
        self.slo
    }

    /// What missing the deadline is worth, in units of distortion summed over chunks.
    pub fn miss(&self) -> f64 {
        self.miss
    }

    /// The segment, if there is one.
    pub fn segment(&self, chunk: usize, level: usize, segment: usize) -> Option<&Segment> {
        self.chunks.get(chunk)?.levels.get(level)?.segments.get(segment)
    }
}

fn check(chunk: &Chunk) -> Result<()> {
    if chunk.levels.is_empty() && chunk.text.is_none() {
        return Err(Error::data("neither a level nor text to recompute it from"));
    }
    if chunk.levels.len() > MAX_LEVELS {
        return Err(Error::Limit(format!("{} levels, at most {MAX_LEVELS}", chunk.levels.len())));
    }
    for (index, level) in chunk.levels.iter().enumerate() {
        if level.segments.is_empty() || level.segments.len() > MAX_LEVELS {
            return Err(Error::data(format!(
                "level {index} has {} segments, not 1 to {MAX_LEVELS}",
                level.segments.len()
            )));
        }
        if let Some(bad) = level.segments.iter().find(|s| !(s.distortion.is_finite() && s.distortion >= 0.0))
        {
            return Err(Error::data(format!("level {index}: a distortion of {}", bad.distortion)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(distortion: f64) -> Level {
        Level::new(u64::MAX, distortion, Duration::MAX)
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let job = |chunk: Chunk| Job::new(vec![chunk], Duration::ZERO);
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            let message = job(Chunk { levels: vec![level(bad)], text: None }).unwrap_err().to_string();
            assert!(message.contains("chunk 0") && message.contains("distortion"), "{message}");
        }
        assert!(job(Chunk { levels: vec![], text: None }).is_err());
        assert!(job(Chunk { levels: vec![Level { segments: vec![] }], text: None }).is_err());
        assert!(job(Chunk { levels: vec![level(1.0); 65], text: None }).is_err());
        assert!(job(Chunk { levels: vec![], text: Some(Duration::MAX) }).is_ok());
        assert!(Job::new(vec![], Duration::MAX).is_ok());
        let many = vec![Chunk { levels: vec![], text: Some(Duration::ZERO) }; MAX_CHUNKS + 1];
        assert!(Job::new(many, Duration::ZERO).is_err());
        let job = Job::new(vec![], Duration::MAX).unwrap();
        assert!(job.clone().with_miss(f64::NAN).is_err() && job.with_miss(3.0).unwrap().miss() == 3.0);
    }

    #[test]
    fn sums_saturate() {
        let segment = Segment { bytes: u64::MAX, distortion: f64::MAX, decode: Duration::MAX };
        let level = Level { segments: vec![segment; 3] };
        assert_eq!((level.bytes(), level.decode()), (u64::MAX, Duration::MAX));
        let chunks = vec![Chunk { levels: vec![level], text: None }; 3];
        assert!(Job::new(chunks, Duration::ZERO).unwrap().miss().is_finite());
    }
}
