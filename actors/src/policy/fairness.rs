//! Who goes first: higher priority, then the tenant that was served least, then the older one.
//!
//! Service is counted in tokens as the virtual token counter does (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024,
//! arXiv:2401.00588), and a tenant that comes back from idleness starts at the count of those who were served meanwhile, so that it neither
//! saves up credit nor pays for others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use relevo_wire::TenantId;

/// What a computed prompt token costs its tenant.
pub const PROMPT_TOKEN_COST: u64 = 1;

/// What a generated token costs its tenant: twice a prompt's, as the paper weighs them (it holds its blocks longer and shares its pass
/// with fewer rows).
pub const GENERATED_TOKEN_COST: u64 = 2;

/// Tenants remembered before those that owe nothing are forgotten.
const MAX_IDLE_TENANTS: usize = 1024;

/// Sequences that wait, in fair order.
#[derive(Clone, Debug, Default)]
pub struct FairQueue {
    levels: BTreeMap<Reverse<i32>, BTreeMap<TenantId, Line>>,
    served: BTreeMap<TenantId, u64>,
    /// The count of the tenant served last: where newcomers start.
    floor: u64,
    len: usize,
}

/// One tenant's waiting sequences of one priority: (age, slot).
type Line = BTreeSet<(Age, usize)>;

/// Place in the order of arrival; kept through preemption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Age(pub u64);

/// One that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Higher goes first.
    pub priority: i32,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its place among equals.
    pub age: Age,
    /// Who it is.
    pub slot: usize,
}

impl FairQueue {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lines up.
    pub fn push(&mut self, entry: Waiting) {
        let served = self.served.entry(entry.tenant).or_default();
        let line = self.levels.entry(Reverse(entry.priority)).or_default().entry(entry.tenant).or_default();
        if line.is_empty() {
            *served = (*served).max(self.floor);
        }
        self.len += usize::from(line.insert((entry.age, entry.slot)));
    }

    /// Leaves the line; false if it was not in it.
    pub fn remove(&mut self, entry: Waiting) -> bool {
        let Some(level) = self.levels.get_mut(&Reverse(entry.priority)) else { return false };
        let Some(line) = level.get_mut(&entry.tenant) else { return false };
        let removed = line.remove(&(entry.age, entry.slot));
        if line.is_empty() {
            level.remove(&entry.tenant);
        }
        if level.is_empty() {
            self.levels.remove(&Reverse(entry.priority));
        }
        self.len -= usize::from(removed);
        removed
    }

    /// Takes the next one out.
    pub fn pop(&mut self) -> Option<Waiting> {
        let (&Reverse(priority), level) = self.levels.first_key_value()?;
        let (served, age, slot, tenant) = level
            .iter()
            .filter_map(|(&tenant, line)| {
                let &(age, slot) = line.first()?;
                Some((self.served.get(&tenant).copied().unwrap_or(0), age, slot, tenant))
            })
            .min()?;
        self.floor = self.floor.max(served);
        let entry = Waiting { priority, tenant, age, slot };
        self.remove(entry);
        Some(entry)
    }

    /// Counts what a tenant was given.
    pub fn charge(&mut self, tenant: TenantId, cost: u64) {
        *self.served.entry(tenant).or_insert(self.floor) += cost;
        if self.served.len() > MAX_IDLE_TENANTS {
            let floor = self.floor;
            self.served.retain(|_, served| *served > floor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(tenant: u32, slot: usize) -> Waiting {
        Waiting { priority: 0, tenant: TenantId(tenant), age: Age(slot as u64), slot }
    }

    #[test]
    fn a_tenant_that_comes_back_from_idleness_has_saved_up_no_credit() {
        let mut queue = FairQueue::default();
        for slot in 0..4 {
            queue.push(waiting(1, slot));
        }
        for _ in 0..2 {
            let next = queue.pop().unwrap();
            queue.charge(next.tenant, 1000);
        }
        // The other one has been served nothing yet, and is owed one turn for that, not all of them.
        (4..8).for_each(|slot| queue.push(waiting(2, slot)));
        let tenants = (0..4).map(|_| {
            let next = queue.pop().unwrap();
            queue.charge(next.tenant, 1000);
            next.tenant.0
        });
        assert_eq!(tenants.collect::<Vec<_>>(), [2, 1, 2, 1]);
    }
}
