//! One blocking daemon a network namespace: an abstract unix socket is held and
//! listened on.
//!
//! Abstract names are free for all users, so that one is held proves
//! nothing. The user that SO_PEERCRED names does: only root, who could stop us
//! anyway, and our own user can end a start.

use crate::kernel::{Claim, Descriptor, Errno, Kernel};
use crate::limits::{CLAIM_PAUSE, CLAIM_TRIES, HTTP_ACCEPTS, START_RETRY};
use crate::report::error_words;
use crate::text::Text;
use crate::time::Instant;

/// What ss(8) shows as `@tcpparser`.
const NAME: &str = "tcpparser";

/// What keeps us from holding the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// A daemon of root or of our own user holds it.
    Instance,
    /// Another user does.
    User(u32),
    /// Its holder takes no connection, so its user is not known. That can be our
    /// own daemon, whose queue another user filled: then two of ours block side
    /// by side, each adopting what the other blocks. To end the start instead
    /// would give every user the means to keep us from blocking at all.
    Silent,
    /// There is no such socket to be had.
    Error(Errno),
}

impl Obstacle {
    /// What a start that goes on all the same says.
    #[inline(never)]
    pub(super) fn words(self) -> Text<48> {
        let mut words = Text::new();
        match self {
            Self::Instance => {}
            Self::User(user) => {
                words.put(b"user ");
                words.put_decimal(user.into());
                words.put(b" holds it");
            }
            Self::Silent => words.put(b"its holder does not answer"),
            Self::Error(error) => return error_words(error),
        }
        words
    }
}

/// The name as this process holds it; all bytes zero when it does not.
pub(super) struct InstanceLock {
    socket: Option<Descriptor>,
    next_drain: Option<Instant>,
}

impl InstanceLock {
    pub(super) const fn new() -> Self {
        Self {
            socket: None,
            next_drain: None,
        }
    }

    /// Takes the name. What stands in the way is looked at again a moment
    /// later: a daemon that ends, one between its bind(2) and its listen(2),
    /// and --unblock are gone by then.
    pub(super) fn acquire(&mut self, kernel: &mut impl Kernel) -> Result<(), Obstacle> {
        let mut tries = CLAIM_TRIES;
        loop {
            let result = self.claim(kernel);
            tries -= 1;
            if result.is_ok() || tries == 0 {
                return result;
            }
            let _ = kernel.poll(&mut [], Some(CLAIM_PAUSE));
        }
    }

    fn claim(&mut self, kernel: &mut impl Kernel) -> Result<(), Obstacle> {
        match kernel.claim(NAME) {
            Ok(Claim::Ours(socket)) => {
                self.socket = Some(socket);
                Ok(())
            }
            Ok(Claim::Held { user, own }) if user == 0 || user == own => Err(Obstacle::Instance),
            Ok(Claim::Held { user, .. }) => Err(Obstacle::User(user)),
            Ok(Claim::Silent) => Err(Obstacle::Silent),
            Err(error) => Err(Obstacle::Error(error)),
        }
    }

    /// Turns away those who connected: they saw whose socket it is, and would
    /// fill its queue. It is not polled, so that connects do not wake us.
    pub(super) fn drain(&mut self, kernel: &mut impl Kernel, now: Instant) {
        let Some(socket) = now.once_past(self.next_drain, self.socket) else {
            return;
        };
        self.next_drain = Some(now.after(START_RETRY));
        for _ in 0..HTTP_ACCEPTS {
            let Ok(accepted) = kernel.accept(socket) else {
                return;
            };
            kernel.close(accepted.descriptor);
        }
    }
}

/// Whether any process holds the name, which is not kept: a start beside
/// --unblock is none beside a daemon.
pub(super) fn is_name_held(kernel: &mut impl Kernel) -> bool {
    match kernel.claim(NAME) {
        Ok(Claim::Ours(socket)) => {
            kernel.close(socket);
            false
        }
        Ok(Claim::Held { .. } | Claim::Silent) => true,
        Err(_) => false,
    }
}
