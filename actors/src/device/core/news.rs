//! What has changed in the prefix cache, told to routers now and then.

use std::time::Duration;

use relevo_wire::Instant64;

use super::{DeviceCore, Effect};
use crate::device::interface::DeviceEvent;
use crate::policy::hint_keys::HintKey;

/// How long a change may wait to be told: as long as a heartbeat does, so that it costs a message a heartbeat and none a step.
const NEWS_EVERY: Duration = Duration::from_millis(100);

/// Changes that do not wait: a message of this many keys is 8 KiB.
const MAX_NEWS: usize = 1024;

/// How long nothing may be told: a router that has missed the last words is wrong for so long.
const SILENCE: Duration = Duration::from_secs(1);

/// When routers were told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NewsClock {
    /// Since when they have not been told of what has changed.
    untold_since: Option<Instant64>,
    last_word: Option<Instant64>,
}

impl DeviceCore {
    /// The prefixes that the pool holds, as routers name them.
    pub fn prefixes(&self) -> impl Iterator<Item = HintKey> + '_ {
        self.pool.hints()
    }

    /// Tells what has changed, if the first change has waited long enough or there are many; a part of a snapshot if one is wanted; and if
    /// nothing was told for long, how much was told so far.
    pub(super) fn tell_news(&mut self, now: Instant64, effects: &mut Vec<Effect>) {
        let (clock, news) = (&mut self.news, self.pool.news());
        if !news.is_empty() {
            clock.untold_since.get_or_insert(now);
        }
        let has_waited = clock.untold_since.is_some_and(|since| now.since(since) >= NEWS_EVERY);
        let is_silent = now.since(*clock.last_word.get_or_insert(now)) >= SILENCE;
        let mut batches = Vec::new();
        if has_waited || news.len() >= MAX_NEWS || news.is_in_snapshot() {
            clock.untold_since = None;
            self.pool.tell(self.limits.max_news_keys, &mut batches);
        } else if is_silent {
            batches.push(news.mark());
        }
        if !batches.is_empty() {
            clock.last_word = Some(now);
        }
        effects.extend(batches.into_iter().map(|batch| Effect::Tell(DeviceEvent::PrefixChanged { batch })));
    }
}
