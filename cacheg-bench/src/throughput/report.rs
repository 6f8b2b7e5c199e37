//! Rows of the reports.

use cacheg::report::{Column, number};
use serde_json::{Value, json};

use super::race::{Family, Lane, median, speed_ratio};
use super::whole::{Whole, Wholes};

/// Beyond this size over the entropy a peer hardly codes, and its speed says nothing about coding.
const CODES: f64 = 1.5;
/// Within this a peer is about as small as ours.
const NEAR: f64 = 1.05;

pub(crate) const CODER_COLUMNS: &[Column] = &[
    ("name", "coder", 0),
    ("encode_gsym_s", "encode Gsym/s", 3),
    ("decode_gsym_s", "decode Gsym/s", 3),
    ("decode_f16_gb_s", "GB/s of f16", 2),
    ("size_over_entropy", "size / H", 3),
    ("stream_over_entropy", "w/o tables", 3),
    ("profile_over_entropy", "profile of others", 3),
    ("decode_vs_memcpy", "× memcpy", 3),
    ("decode_vs_best_peer", "× best peer", 2),
    ("decode_vs_near_peer", "× best near H", 2),
];

pub(crate) const WHOLE_COLUMNS: &[Column] = &[
    ("name", "preset", 0),
    ("tables", "tables", 0),
    ("threads", "threads", 0),
    ("bits_per_value", "bits/value", 3),
    ("encode_mb_s", "encode MB/s", 0),
    ("decode_mb_s", "decode MB/s", 0),
    ("encode_vs_memcpy", "encode × memcpy", 3),
    ("decode_vs_memcpy", "decode × memcpy", 3),
    ("encode_speedup", "encode × 1 thread", 2),
    ("decode_speedup", "decode × 1 thread", 2),
];

/// What the coders' rows are relative to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    pub(crate) symbols: usize,
    pub(crate) entropy_bits: f64,
}

impl Scale {
    fn over_entropy(self, bytes: usize) -> f64 {
        bytes as f64 * 8.0 / self.entropy_bits
    }

    /// Everything that a reader needs.
    pub(crate) fn size(self, lane: &Lane) -> f64 {
        self.over_entropy(lane.stream_len + lane.tables_len)
    }

    /// Without the tables, which a profile may hold.
    pub(crate) fn stream_size(self, lane: &Lane) -> f64 {
        self.over_entropy(lane.stream_len)
    }

    pub(crate) fn decode_gsym_s(self, lane: &Lane) -> f64 {
        self.gsym_s(&lane.decode)
    }

    fn gsym_s(self, seconds: &[f64]) -> f64 {
        self.symbols as f64 / median(seconds.to_vec()) / 1e9
    }

    fn fastest(self, lanes: &[Lane], most: f64) -> Option<&Lane> {
        lanes
            .iter()
            .filter(|lane| lane.family == Family::Peer && self.size(lane) <= most)
            .max_by(|a, b| self.decode_gsym_s(a).total_cmp(&self.decode_gsym_s(b)))
    }

    /// The fastest peer of any size that still deserves the name of a coder.
    pub(crate) fn best_peer(self, lanes: &[Lane]) -> Option<&Lane> {
        self.fastest(lanes, CODES)
    }

    /// The fastest peer near the entropy.
    pub(crate) fn near_peer(self, lanes: &[Lane]) -> Option<&Lane> {
        self.fastest(lanes, NEAR)
    }

    /// A row for each lane; `others` are bytes of streams under tables of other contexts, by name.
    pub(crate) fn rows(self, lanes: &[Lane], others: &[(String, usize)]) -> Vec<Value> {
        let memcpy = lanes.iter().find(|lane| lane.family == Family::Reference);
        let (best, near) = (self.best_peer(lanes), self.near_peer(lanes));
        let decode_vs = |lane: &Lane, other: Option<&Lane>| {
            other.map_or(Value::Null, |other| number(speed_ratio(&lane.decode, &other.decode)))
        };
        let row = |lane: &Lane| {
            let coder = lane.family != Family::Reference;
            let only = |value: f64| if coder { number(value) } else { Value::Null };
            let decode = self.decode_gsym_s(lane);
            let other = others.iter().find(|(name, _)| *name == lane.name);
            json!({
                "table": "coders",
                "name": lane.name,
                "family": lane.family.name(),
                "streams": lane.streams,
                "order": lane.order.map(super::symbols::Order::name),
                "encode_gsym_s": only(self.gsym_s(&lane.encode)),
                "decode_gsym_s": number(decode),
                "encode_f16_gb_s": only(self.gsym_s(&lane.encode) * 2.0),
                "decode_f16_gb_s": number(decode * 2.0),
                "size_over_entropy": only(self.size(lane)),
                "stream_over_entropy": only(self.stream_size(lane)),
                "profile_over_entropy": other.map(|(_, bytes)| self.over_entropy(*bytes)),
                "decode_vs_memcpy": decode_vs(lane, memcpy),
                "decode_vs_best_peer": decode_vs(lane, best),
                "decode_vs_near_peer": decode_vs(lane, near),
            })
        };
        lanes.iter().map(row).collect()
    }
}

/// A row for each preset and number of threads.
pub(crate) fn whole_rows(wholes: &Wholes) -> Vec<Value> {
    let mb_s = |seconds: &[f64]| number(wholes.bytes / median(seconds.to_vec()) / 1e6);
    let row = |whole: &Whole| {
        let single = wholes
            .rows
            .iter()
            .find(|other| other.threads == 1 && (other.preset, other.tables) == (whole.preset, whole.tables));
        let speedup = |of: fn(&Whole) -> &Vec<f64>| {
            single.map_or(Value::Null, |single| number(speed_ratio(of(whole), of(single))))
        };
        json!({
            "table": "end_to_end",
            "name": whole.preset,
            "tables": whole.tables,
            "threads": whole.threads,
            "bits_per_value": number(whole.coded as f64 * 8.0 / wholes.values),
            "encode_mb_s": mb_s(&whole.encode),
            "decode_mb_s": mb_s(&whole.decode),
            "memcpy_mb_s": mb_s(&whole.memcpy),
            "encode_vs_memcpy": number(speed_ratio(&whole.encode, &whole.memcpy)),
            "decode_vs_memcpy": number(speed_ratio(&whole.decode, &whole.memcpy)),
            "encode_speedup": speedup(|whole| &whole.encode),
            "decode_speedup": speedup(|whole| &whole.decode),
        })
    };
    wholes.rows.iter().map(row).collect()
}
