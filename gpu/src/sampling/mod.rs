//! From a row of logits to a token and its log-probabilities: pure functions, the same bits on every processor.
//!
//! The order of what shapes the distribution is vLLM's: penalties, bias, banned ids, temperature, `top_k`, `min_p`, `top_p`; ties go to
//! the lower id. Log-probabilities are those of the raw logits.
//!
//! Probabilities are *masses*: whole numbers, `round(exp((logit - best) / temperature) · 2^30)`. Sums of them are exact, so no order of summation
//! has to be kept, and a draw is the comparison of two integers. A token that is 2^31 times less likely than the best has no mass and is never drawn.
//!
//! **Invariant:** a draw depends on the logits, the parameters and (seed, choice, position), on nothing else.

mod adjustments;
mod candidates;
mod exponential;
mod logprobs;
mod philox;
mod row;

pub use philox::philox4x32;
pub use row::{RowRequest, Scratch, sample_row};

#[cfg(test)]
mod tests;
