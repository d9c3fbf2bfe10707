//! What lets a link in: a secret of two processes that know each other already.

use std::fmt;

use subtle::ConstantTimeEq;

/// Length of a ticket.
pub(super) const TICKET_BYTES: usize = 32;

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

    /// Whether they are the same. How long it takes does not tell how close a guess was.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_does_not_show_itself() {
        assert_ne!(Ticket::random().unwrap().0, Ticket::random().unwrap().0);
        assert_eq!(format!("{:?}", Ticket::from_bytes([5; TICKET_BYTES])), "Ticket(secret)");
    }
}
