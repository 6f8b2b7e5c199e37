//! Whether the model still finds the first topic in a reconstruction: a question is read on it and answered.

use cacheg::{Error, Result};
use cacheg_bench::llm::{KvState, Model, Step, Tokenizer};

use super::answer::{first_line, names, words};
use super::measure::{Found, Judge};
use super::topics::Question;

/// Tokens in which the answer has to be.
const TOKENS: usize = 24;

/// An answer, and how likely the right one was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Answer {
    /// The topic is in it.
    pub(crate) right: bool,
    /// It is in the reference's.
    pub(crate) reference_right: bool,
    /// It has the words of the reference's.
    pub(crate) equal: bool,
    /// Negative log-likelihood of the topic's tokens as the answer, in nats per token.
    pub(crate) label_nll: f64,
    /// How much more that is than the reference's.
    pub(crate) delta_label_nll: f64,
}

/// What the model wrote, and how likely the right answer was.
struct Written {
    text: String,
    label_nll: f64,
}

pub(super) struct Retrieval<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    question: &'a Question,
    /// The model's own cache, until it has answered on it.
    own: Option<KvState>,
    reference: Option<Written>,
}

impl<'a> Retrieval<'a> {
    pub(super) fn new(
        (model, tokenizer): (&'a Model, &'a Tokenizer),
        question: &'a Question,
        kv: KvState,
    ) -> Self {
        Self { model, tokenizer, question, own: Some(kv), reference: None }
    }

    /// What the model writes on each of the caches.
    fn write(&self, states: &mut [KvState]) -> Result<Vec<Written>> {
        let Question { ids, label_ids, .. } = self.question;
        // The question and the right answer are read at once; then all behind the question is forgotten.
        let known = label_ids.len().saturating_sub(1);
        let read: Vec<u32> = ids.iter().chain(&label_ids[..known]).copied().collect();
        let mut steps: Vec<Step<'_>> = states.iter_mut().map(|kv| Step { tokens: &read, kv }).collect();
        let hidden = self.model.forward_steps(&mut steps, None)?;
        let failed = |e: candle_core::Error| Error::data(e.to_string());
        let (mut losses, mut last) = (Vec::new(), Vec::new());
        for (rows, kv) in hidden.iter().zip(states.iter_mut()) {
            let rows = rows.narrow(0, ids.len() - 1, known + 1).map_err(failed)?;
            let likelihoods = self.model.log_likelihoods(&rows, label_ids)?;
            losses.push(-likelihoods.iter().sum::<f64>() / likelihoods.len() as f64);
            last.push(rows.narrow(0, 0, 1).map_err(failed)?);
            kv.truncate(kv.tokens() - known);
        }
        let texts = self.model.greedy(&last, &mut states.iter_mut().collect::<Vec<_>>(), TOKENS)?;
        let written = texts.iter().zip(losses).map(|(ids, label_nll)| {
            let text = self.tokenizer.decode(ids)?;
            Ok(Written { text: first_line(&text).to_owned(), label_nll })
        });
        written.collect()
    }
}

impl Judge for Retrieval<'_> {
    fn judge(&mut self, mut states: Vec<KvState>, done: &dyn Fn()) -> Result<Vec<Found>> {
        let own = self.own.take();
        let first_time = own.is_some();
        states.extend(own);
        let mut written = self.write(&mut states)?;
        if first_time {
            self.reference = written.pop();
        }
        let reference =
            self.reference.as_ref().ok_or_else(|| Error::data("nothing to compare answers with"))?;
        let found = written.iter().map(|written| {
            done();
            Found::Retrieval(written.judged(reference, &self.question.label))
        });
        Ok(found.collect())
    }
}

impl Written {
    fn judged(&self, reference: &Self, label: &str) -> Answer {
        Answer {
            right: names(&self.text, label),
            reference_right: names(&reference.text, label),
            equal: words(&self.text) == words(&reference.text),
            label_nll: self.label_nll,
            delta_label_nll: self.label_nll - reference.label_nll,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_hand() {
        let written = |text: &str, label_nll| Written { text: text.into(), label_nll };
        let reference = written("The psychology of happiness.", 0.25);
        let judged = |text: &str, label_nll| {
            let Answer { right, reference_right, equal, label_nll, delta_label_nll } =
                written(text, label_nll).judged(&reference, "The psychology of happiness");
            assert_eq!((reference_right, label_nll - delta_label_nll), (true, 0.25));
            (right, equal, delta_label_nll)
        };
        assert_eq!(judged("Psychology of Happiness", 0.25), (true, true, 0.0));
        assert_eq!(judged("It was the psychology of happiness", 0.75), (true, false, 0.5));
        assert_eq!(judged("The psychology of creativity", 2.25), (false, false, 2.0));
        // The reference may be wrong, too: then equal answers are wrong.
        let wrong = written("Happiness", 1.0);
        let answer = wrong.judged(&wrong, "The psychology of happiness");
        assert_eq!((answer.right, answer.reference_right, answer.equal), (false, false, true));
    }
}
