//! Who may come in at a listener, and who is in: what is needed to let go of a peer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ticket::Ticket;

/// How long a ticket is good for: those who have agreed on one dial at once.
const TICKET_LIFE: Duration = Duration::from_secs(30);

/// Tickets that are good at a time, the oldest of which make room for new ones: as many as there may be connections.
const MAX_TICKETS: usize = 256;

/// Of these, how many one peer may have, so that it cannot take away those of others: twice the devices of a large host.
const MAX_TICKETS_OF_ONE: usize = 16;

/// Who is expected, and who is in.
#[derive(Default)]
pub(super) struct Guests {
    expected: VecDeque<Expected>,
    inside: Vec<Inside>,
}

struct Expected {
    ticket: Ticket,
    peer: String,
    until: Instant,
}

struct Inside {
    peer: String,
    /// Its connection ends when this is dropped.
    parts: oneshot::Sender<Infallible>,
}

/// Somebody who was expected.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) peer: String,
    /// Comes, as an error, when the peer is let go of.
    pub(super) parted: oneshot::Receiver<Infallible>,
}

impl Guests {
    /// Lets in who shows `ticket`, as `peer`.
    pub(super) fn expect(&mut self, ticket: Ticket, peer: &str, now: Instant) {
        let mut own = self.expected.iter().enumerate().filter(|(_, expected)| expected.peer == peer);
        let (oldest, num_own) = (own.next().map(|(index, _)| index), own.count() + 1);
        if let Some(oldest) = oldest.filter(|_| num_own >= MAX_TICKETS_OF_ONE) {
            self.expected.remove(oldest);
        } else if self.expected.len() >= MAX_TICKETS {
            self.expected.pop_front();
        }
        self.expected.push_back(Expected { ticket, peer: peer.to_owned(), until: now + TICKET_LIFE });
    }

    /// Who shows `ticket`, which is used up, is in from here on.
    pub(super) fn let_in(&mut self, ticket: &Ticket, now: Instant) -> Option<Guest> {
        self.expected.retain(|expected| expected.until > now);
        let mut found = None;
        for (index, expected) in self.expected.iter().enumerate() {
            if expected.ticket.is(ticket) {
                found = Some(index);
            }
        }
        let peer = self.expected.remove(found?)?.peer;
        self.inside.retain(|inside| !inside.parts.is_closed());
        let (parts, parted) = oneshot::channel();
        self.inside.push(Inside { peer: peer.clone(), parts });
        Some(Guest { peer, parted })
    }

    /// Ends the connections of a peer, and has no ticket of it good any more.
    pub(super) fn part_from(&mut self, peer: &str) {
        self.expected.retain(|expected| expected.peer != peer);
        self.inside.retain(|inside| inside.peer != peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(number: usize) -> Ticket {
        let mut bytes = [7; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Ticket::from_bytes(bytes)
    }

    fn let_in(guests: &mut Guests, ticket: &Ticket, now: Instant) -> Option<String> {
        guests.let_in(ticket, now).map(|guest| guest.peer)
    }

    #[test]
    fn a_ticket_is_good_once_and_for_its_life() {
        let (mut guests, now) = (Guests::default(), Instant::now());
        for number in 0..3 {
            guests.expect(ticket(number), &format!("device-{number}"), now);
        }
        let mut nearly = *ticket(1).as_bytes();
        nearly[31] ^= 1;
        assert_eq!(let_in(&mut guests, &Ticket::from_bytes(nearly), now), None);
        assert_eq!(let_in(&mut guests, &ticket(1), now).as_deref(), Some("device-1"));
        assert_eq!(let_in(&mut guests, &ticket(1), now), None);
        let late = now + TICKET_LIFE;
        assert_eq!(let_in(&mut guests, &ticket(0), late - Duration::from_millis(1)).as_deref(), Some("device-0"));
        assert_eq!(let_in(&mut guests, &ticket(2), late), None);
    }

    #[test]
    fn the_oldest_tickets_make_room_for_new_ones() {
        let (mut guests, now) = (Guests::default(), Instant::now());
        for number in 0..=MAX_TICKETS {
            guests.expect(ticket(number), &format!("device-{number}"), now);
        }
        assert_eq!(guests.expected.len(), MAX_TICKETS);
        assert_eq!(let_in(&mut guests, &ticket(0), now), None);
        assert!(
            let_in(&mut guests, &ticket(1), now).is_some() && let_in(&mut guests, &ticket(MAX_TICKETS), now).is_some()
        );
    }

    #[test]
    fn a_peer_that_asks_for_many_tickets_takes_no_others_away() {
        let (mut guests, now) = (Guests::default(), Instant::now());
        guests.expect(ticket(0), "modest", now);
        for number in 1..=2 * MAX_TICKETS {
            guests.expect(ticket(number), "greedy", now);
        }
        assert_eq!(guests.expected.len(), 1 + MAX_TICKETS_OF_ONE);
        assert_eq!(let_in(&mut guests, &ticket(0), now).as_deref(), Some("modest"));
        assert_eq!(let_in(&mut guests, &ticket(2 * MAX_TICKETS), now).as_deref(), Some("greedy"));
    }

    #[test]
    fn who_is_parted_from_is_out_with_its_tickets_and_nobody_else_is() {
        let (mut guests, now) = (Guests::default(), Instant::now());
        for (number, peer) in ["one", "one", "other", "other"].into_iter().enumerate() {
            guests.expect(ticket(number), peer, now);
        }
        let (mut one, mut other) = (guests.let_in(&ticket(0), now).unwrap(), guests.let_in(&ticket(2), now).unwrap());
        guests.part_from("one");
        assert_eq!(one.parted.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert_eq!(other.parted.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        assert_eq!(let_in(&mut guests, &ticket(1), now), None);
        assert!(let_in(&mut guests, &ticket(3), now).is_some());
        drop(other);
        guests.expect(ticket(4), "one", now);
        assert!(guests.let_in(&ticket(4), now).is_some());
        assert_eq!(guests.inside.len(), 1, "those who have gone are not kept");
    }
}
