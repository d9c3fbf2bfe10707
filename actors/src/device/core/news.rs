//! What has changed in the prefix cache, told to routers now and then.

use std::time::Duration;

use relevo_wire::Instant64;

use super::{DeviceCore, Effect};
use crate::device::interface::DeviceEvent;
use crate::policy::hints::HintKey;

/// How long a change may wait to be told: as long as a heartbeat does, so that it costs a message a heartbeat and none a step.
const NEWS_EVERY: Duration = Duration::from_millis(100);

/// Changes that do not wait: a message of this many keys is 8 KiB.
const MAX_NEWS: usize = 1024;

impl DeviceCore {
    /// The prefixes that the pool holds, as routers name them.
    pub fn prefixes(&self) -> impl Iterator<Item = HintKey> + '_ {
        self.pool.hints()
    }

    /// Tells what has changed, if the first change has waited long enough or there are many.
    pub(super) fn tell_news(&mut self, now: Instant64, effects: &mut Vec<Effect>) {
        let news = self.pool.news();
        if news.is_empty() {
            return;
        }
        let since = *self.news_since.get_or_insert(now);
        if now.since(since) >= NEWS_EVERY || news.len() >= MAX_NEWS {
            self.news_since = None;
            effects.push(Effect::Tell(DeviceEvent::PrefixChanged { change: news.take() }));
        }
    }
}
