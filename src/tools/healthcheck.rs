//! --healthcheck: asks the running daemon how it is, so that a supervisor can
//! restart one that is not well. Needs no rights.

use crate::address::Endpoint;
use crate::daemon::clock::now;
use crate::daemon::output::{log_pair, log_words};
use crate::firewall::EXPLANATION_MAX;
use crate::kernel::{Descriptor, Errno, Interest, Kernel, More};
use crate::limits::HEALTHCHECK_DEADLINE;
use crate::report::{self, error_words};
use crate::text::{Text, trim};
use crate::time::{Duration, Instant};

/// Another program that has the port may well answer 200 to everything.
const WELL_START: &[u8] = b"HTTP/1.1 200 ";
const WELL_END: &[u8] = b"\r\n\r\nok\n";

const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Exit status 0 where the daemon says that it is well, else one line and 1.
#[inline(never)]
pub fn run(kernel: &mut impl Kernel, address: Option<Endpoint>, buffer: &mut [u8]) -> u8 {
    let Some(address) = address else {
        log_words(kernel, b"--listen none leaves no listener to ask");
        return 1;
    };
    let address = address.local();
    let mut why: Text<EXPLANATION_MAX> = Text::new();
    match ask(kernel, address, buffer) {
        Ok(answer) if answer.starts_with(WELL_START) && answer.ends_with(WELL_END) => return 0,
        Ok(answer) => put_reason(&mut why, answer),
        Err(error) => why.put(error_words(error).as_bytes()),
    }
    let place = report::endpoint_words(b"", address, b": ");
    log_pair(kernel, place.as_bytes(), trim(why.as_bytes()));
    1
}

fn ask<'a>(
    kernel: &mut impl Kernel,
    address: Endpoint,
    buffer: &'a mut [u8],
) -> Result<&'a [u8], Errno> {
    let deadline = now(kernel).after(HEALTHCHECK_DEADLINE);
    let socket = kernel.connect(address)?;
    let result = exchange(kernel, socket, buffer, deadline);
    kernel.close(socket);
    result.map(|count| buffer.get(..count).unwrap_or_default())
}

/// The status and the body of an answer: `503 the firewall cannot be used`.
fn put_reason(why: &mut Text<EXPLANATION_MAX>, answer: &[u8]) {
    let rest = answer.strip_prefix(b"HTTP/1.1 ");
    let Some(rest) = rest.filter(|rest| !rest.starts_with(b"200 ")) else {
        return why.put(b"that is no answer of tcpparser");
    };
    why.put_printable(rest.get(..4).unwrap_or(rest));
    let body = rest.windows(4).position(|end| end == b"\r\n\r\n");
    let body = body.and_then(|end| rest.get(end + 4..));
    why.put_printable(body.unwrap_or_default());
}

/// Sends the request and fills the buffer up to the answer's end.
fn exchange(
    kernel: &mut impl Kernel,
    socket: Descriptor,
    buffer: &mut [u8],
    deadline: Instant,
) -> Result<usize, Errno> {
    let mut request = REQUEST;
    let mut filled = 0;
    loop {
        let room = buffer.get_mut(filled..).unwrap_or_default();
        let is_sending = !request.is_empty();
        let result = if is_sending {
            kernel.send(socket, request, More::No)
        } else {
            kernel.receive(socket, room)
        };
        match result {
            Ok(count) if is_sending => request = request.get(count..).unwrap_or_default(),
            // The end, or a full buffer.
            Ok(0) => return Ok(filled),
            Ok(count) => filled += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let left = now(kernel).until(deadline);
                if left == Duration::ZERO {
                    return Err(Errno::ETIMEDOUT);
                }
                let interest = if is_sending {
                    Interest::write(Some(socket))
                } else {
                    Interest::read(Some(socket))
                };
                let _ = kernel.poll(&mut [interest], Some(left));
            }
            // A reset behind the answer takes nothing away from it.
            Err(_) if filled > 0 => return Ok(filled),
            Err(error) => return Err(error),
        }
    }
}
