//! What lets a link in: a secret of two processes that know each other already.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use subtle::ConstantTimeEq;
use tokio::time::Instant;

/// Length of a ticket.
pub(super) const TICKET_BYTES: usize = 32;

/// How long a ticket is good for: those who have agreed on one dial at once.
const TICKET_LIFE: Duration = Duration::from_secs(30);

/// Tickets that are good at a time, the oldest of which make room for new ones: as many as there may be connections.
const MAX_TICKETS: usize = 256;

/// A secret that lets one link in, once. To be handed over only where both ends are known to each other.
#[derive(Clone)]
pub struct Ticket([u8; TICKET_BYTES]);

impl Ticket {
    /// A new one.
    ///
    /// # Errors
    /// The system's: it has no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; TICKET_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// As it came from the peer.
    pub const fn from_bytes(bytes: [u8; TICKET_BYTES]) -> Self {
        Self(bytes)
    }

    /// To be handed to the peer.
    pub const fn as_bytes(&self) -> &[u8; TICKET_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(secret)")
    }
}

/// Who is expected.
#[derive(Default)]
pub(super) struct Expected {
    guests: VecDeque<Guest>,
}

struct Guest {
    ticket: Ticket,
    peer: String,
    until: Instant,
}

impl Expected {
    /// Lets in who shows `ticket`, as `peer`.
    pub(super) fn add(&mut self, ticket: Ticket, peer: String, now: Instant) {
        if self.guests.len() >= MAX_TICKETS {
            self.guests.pop_front();
        }
        self.guests.push_back(Guest { ticket, peer, until: now + TICKET_LIFE });
    }

    /// Who shows `ticket`; it is used up. How long it takes does not tell how close a guess was.
    pub(super) fn take(&mut self, ticket: &Ticket, now: Instant) -> Option<String> {
        self.guests.retain(|guest| guest.until > now);
        let mut found = None;
        for (index, guest) in self.guests.iter().enumerate() {
            if bool::from(guest.ticket.0.ct_eq(&ticket.0)) {
                found = Some(index);
            }
        }
        self.guests.remove(found?).map(|guest| guest.peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(number: usize) -> Ticket {
        let mut bytes = [7; TICKET_BYTES];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Ticket::from_bytes(bytes)
    }

    #[test]
    fn a_ticket_is_good_once_and_for_its_life() {
        let (mut expected, now) = (Expected::default(), Instant::now());
        for number in 0..3 {
            expected.add(ticket(number), format!("device-{number}"), now);
        }
        let mut nearly = ticket(1);
        nearly.0[TICKET_BYTES - 1] ^= 1;
        assert_eq!(expected.take(&nearly, now), None);
        assert_eq!(expected.take(&ticket(1), now).as_deref(), Some("device-1"));
        assert_eq!(expected.take(&ticket(1), now), None);
        let late = now + TICKET_LIFE;
        assert_eq!(expected.take(&ticket(0), late - Duration::from_millis(1)).as_deref(), Some("device-0"));
        assert_eq!(expected.take(&ticket(2), late), None);
    }

    #[test]
    fn the_oldest_tickets_make_room_for_new_ones() {
        let (mut expected, now) = (Expected::default(), Instant::now());
        for number in 0..=MAX_TICKETS {
            expected.add(ticket(number), String::new(), now);
        }
        assert_eq!(expected.guests.len(), MAX_TICKETS);
        assert_eq!(expected.take(&ticket(0), now), None);
        assert!(expected.take(&ticket(1), now).is_some() && expected.take(&ticket(MAX_TICKETS), now).is_some());
    }

    #[test]
    fn a_ticket_does_not_show_itself() {
        assert_ne!(Ticket::random().unwrap().0, Ticket::random().unwrap().0);
        assert_eq!(format!("{:?}", ticket(5)), "Ticket(secret)");
    }
}
