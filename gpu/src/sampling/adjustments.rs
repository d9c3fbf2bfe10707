//! What a request does to the logits before the temperature: penalties, bias, bans.

use relevo_wire::{SamplingParams, TokenId};

/// Set in a token's tally if it was seen at all; the bits below count how often it was generated.
const SEEN: u32 = 1 << 31;

/// The changes that one draw makes to its logits; copies of what they need, and of nothing that they do not.
#[derive(Clone, Debug, Default)]
pub(super) struct Adjustments {
    repetition: f32,
    frequency: f32,
    presence: f32,
    /// Empty unless a penalty looks at it.
    prompt: Vec<TokenId>,
    /// Empty unless a penalty looks at it.
    generated: Vec<TokenId>,
    banned: Vec<TokenId>,
}

impl Adjustments {
    pub(super) fn new(params: &SamplingParams, prompt: &[TokenId], generated: &[TokenId], banned: &[TokenId]) -> Self {
        let repeats = params.repetition_penalty != 1.0;
        let counts = params.frequency_penalty != 0.0 || params.presence_penalty != 0.0;
        Self {
            repetition: params.repetition_penalty,
            frequency: params.frequency_penalty,
            presence: params.presence_penalty,
            prompt: if repeats { prompt.to_vec() } else { Vec::new() },
            generated: if repeats || counts { generated.to_vec() } else { Vec::new() },
            banned: banned.to_vec(),
        }
    }

    /// Changes the logits of the tokens concerned. Ids beyond the vocabulary are ignored. `tallies` is left all zero.
    pub(super) fn apply(&self, logits: &mut [f32], bias: &[(TokenId, f32)], tallies: &mut Vec<u32>) {
        if !self.prompt.is_empty() || !self.generated.is_empty() {
            tallies.resize(logits.len(), 0);
            self.penalise(logits, tallies);
        }
        for (token, bias) in bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for token in &self.banned {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    fn penalise(&self, logits: &mut [f32], tallies: &mut [u32]) {
        for token in self.prompt.iter().chain(&self.generated) {
            let (Some(logit), Some(tally)) = (logits.get_mut(*token as usize), tallies.get_mut(*token as usize)) else {
                continue;
            };
            if *tally == 0 {
                *logit = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
                *tally = SEEN;
            }
        }
        for token in &self.generated {
            if let Some(tally) = tallies.get_mut(*token as usize) {
                *tally += 1;
            }
        }
        for token in self.generated.iter().chain(&self.prompt) {
            let (Some(logit), Some(tally)) = (logits.get_mut(*token as usize), tallies.get_mut(*token as usize)) else {
                continue;
            };
            let count = std::mem::take(tally) & !SEEN;
            if count > 0 {
                *logit = *logit - self.frequency * count as f32 - self.presence;
            }
        }
    }
}
