//! Questions to netlink that have one answer each: about one socket, one
//! connection, one route.

use crate::kernel::{Descriptor, Errno, Kernel, More, Netlink};
use crate::netlink::u32_at;
use crate::text::head;

/// System calls for one question: signals interrupt them, and answers to older
/// ones are passed over. None waits.
const TRIES: usize = 16;

/// Bytes of an answer: some 400 were measured about a socket.
pub(super) const ANSWER: usize = 2_048;

/// Where struct nlmsghdr has its sequence number.
const SEQUENCE: usize = 8;

/// Asks one kind of netlink; all bytes zero when new.
pub(super) struct Questions {
    /// Kept: to open it costs two questions.
    socket: Option<Descriptor>,
    sequence: u32,
}

impl Questions {
    pub(super) const fn new() -> Self {
        Self {
            socket: None,
            sequence: 0,
        }
    }

    /// The sequence number of the next question.
    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends the request with that number and returns the answer to it.
    #[inline(never)]
    pub(super) fn ask<'a>(
        &mut self,
        kernel: &mut impl Kernel,
        kind: Netlink,
        request: &[u8],
        buffer: &'a mut [u8; ANSWER],
    ) -> Result<&'a [u8], Errno> {
        let socket = match self.socket {
            Some(socket) => socket,
            None => kernel.netlink(kind)?,
        };
        self.socket = Some(socket);
        let mut is_sent = false;
        for _ in 0..TRIES {
            // The kernel answers while it takes the request.
            let result = if is_sent {
                kernel.receive(socket, buffer)
            } else {
                kernel.send(socket, request, More::No)
            };
            match result {
                Ok(_) if !is_sent => is_sent = true,
                Ok(count) if u32_at(buffer, SEQUENCE) == Some(self.sequence) => {
                    return Ok(head(buffer, count));
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EINTR)
    }
}
