//! SentencePiece's byte pairs, as GGUF files have them: pieces with scores instead of merges.
//!
//! SentencePiece joins the two neighbours that make the piece of the highest score, again and again, beginning with
//! characters, blanks written as `▁`; characters without a piece are tokens by byte. Texts that the model's makers chose
//! (`user-defined`: in Gemma's vocabulary runs of 2 to 31 blanks, of newlines and tabs, HTML tags) are tokens before
//! that, the longest first, and never joined.

use std::collections::HashMap;

use cacheg::{Error, Result};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::Replace;
use tokenizers::{ModelWrapper, NormalizerWrapper};

use super::tokenizer::NORMAL;

/// How vocabularies write a blank.
const BLANK: &str = "▁";

/// From the pieces with their types and scores; `unknown` is what stands for what cannot be written.
pub(super) fn tokenizer(
    pieces: &[&str],
    types: &[i64],
    scores: &[f32],
    unknown: Option<&str>,
) -> Result<tokenizers::Tokenizer> {
    if types.len() != pieces.len() || scores.len() != pieces.len() {
        return Err(Error::corrupt(format!(
            "{} types and {} scores of {} pieces",
            types.len(),
            scores.len(),
            pieces.len()
        )));
    }
    let vocabulary: Vocab = pieces.iter().zip(0u32..).map(|(piece, id)| ((*piece).to_owned(), id)).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary, merges(pieces, types, scores))
        .byte_fallback(true)
        .fuse_unk(true);
    let bpe = unknown.into_iter().fold(bpe, |bpe, unknown| bpe.unk_token(unknown.to_owned()));
    let failed = |e: tokenizers::Error| Error::corrupt(format!("tokenizer: {e}"));
    let mut tokenizer = tokenizers::Tokenizer::new(ModelWrapper::BPE(bpe.build().map_err(failed)?));
    let replace = Replace::new(" ", BLANK).map_err(failed)?;
    tokenizer.with_normalizer(Some(NormalizerWrapper::Replace(replace)));
    let replace = Replace::new(BLANK, " ").map_err(failed)?;
    tokenizer.with_decoder(Some(Sequence::new(vec![
        DecoderWrapper::Replace(replace),
        DecoderWrapper::ByteFallback(ByteFallback::new()),
        DecoderWrapper::Fuse(Fuse::new()),
    ])));
    Ok(tokenizer)
}

/// Every way to make a piece of two others, the pieces of the highest scores first.
fn merges(pieces: &[&str], types: &[i64], scores: &[f32]) -> Vec<(String, String)> {
    let normal = || (0..pieces.len()).filter(|id| types[*id] == NORMAL);
    let ids: HashMap<&str, usize> = normal().map(|id| (pieces[id], id)).collect();
    let mut order: Vec<usize> = normal().collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    let mut merges = Vec::new();
    for id in order {
        let piece = pieces[id];
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut both: Vec<(usize, usize)> =
            splits.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?))).collect();
        both.sort_unstable();
        merges.extend(
            both.into_iter().map(|(left, right)| (pieces[left].to_owned(), pieces[right].to_owned())),
        );
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_piece_is_made_first_of_what_is_there() {
        let pieces = ["<0x41>", "a", "b", "c", "ab", "bc", "abc", "▁", "▁a"];
        let types = [6, 1, 1, 1, 1, 1, 1, 1, 1];
        let scores = [0.0, -20.0, -21.0, -22.0, -3.0, -2.0, -4.0, -23.0, -1.0];
        let pairs = merges(&pieces, &types, &scores);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(a, b)| (&a[..], &b[..])).collect();
        assert_eq!(pairs, [("▁", "a"), ("b", "c"), ("a", "b"), ("a", "bc"), ("ab", "c")]);
        let tokenizer = tokenizer(&pieces, &types, &scores, None).unwrap();
        let ids = |text: &str| tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
        assert_eq!(ids("abc"), [6]);
        assert_eq!(ids(" abc"), [8, 5]);
        assert_eq!(ids("Aab"), [0, 4]);
        assert_eq!(tokenizer.decode(&[8, 5, 0], false).unwrap(), " abcA");
        assert!(super::tokenizer(&pieces, &types[1..], &scores, None).is_err());
    }
}
