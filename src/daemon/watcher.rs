//! Destroy events: the kernel says of each TCP socket when it ends, however
//! short its life was. A self-test shows whether events arrive.

use crate::address::is_loopback;
use crate::kernel::{Descriptor, Errno, Kernel, Netlink};
use crate::limits::{EVENTS_PER_TURN, EVENTS_REST, EVENTS_RETRY, SELF_TEST_WAIT_BUDGET};
use crate::sock_diag::{DiagSocket, walk_events};
use crate::text::head;
use crate::time::{Instant, nearest};

use super::once::Once;
use super::output::log_error;
use super::reader::Namespace;

/// The socket of destroy events and what is known of it; all bytes zero when
/// new.
pub(super) struct Watcher {
    socket: Option<Descriptor>,
    /// What netlink shows is of the network namespace that is read.
    is_own_namespace: bool,
    is_up: bool,
    down: Once,
    /// All events that the kernel had were taken in.
    is_drained: bool,
    /// `None` until the first reading, which has the first check.
    next_check: Option<Instant>,
    test: Option<SelfTest>,
    /// Events may wait until then: the last were of connections within the host,
    /// which are counted and no more.
    rest_until: Option<Instant>,
}

/// The self-test waits for one event.
#[derive(Clone, Copy)]
struct SelfTest {
    /// Of this port of ours.
    port: u16,
    /// `None` where it failed: an event that is late proves as much.
    deadline: Option<Instant>,
}

/// What one turn took in.
#[derive(Clone, Copy, Default)]
pub(super) struct Taken {
    pub(super) events: u64,
    pub(super) malformed: u64,
    /// The kernel dropped events.
    pub(super) overflows: u64,
}

impl Watcher {
    pub(super) const fn new() -> Self {
        Self {
            socket: None,
            is_own_namespace: false,
            is_up: false,
            down: Once::NEW,
            is_drained: false,
            next_check: None,
            test: None,
            rest_until: None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let test = nearest(self.test_deadline(), self.rest_until);
        nearest(self.next_check, test)
    }

    fn test_deadline(&self) -> Option<Instant> {
        self.test.and_then(|test| test.deadline)
    }

    /// The socket, where events are waited for.
    pub(super) fn events(&self, now: Instant) -> Option<Descriptor> {
        now.once_past(self.rest_until, self.socket)
    }

    /// Whether what netlink shows is of the network namespace that is read.
    pub(super) fn is_own_namespace(&self) -> bool {
        self.is_own_namespace
    }

    pub(super) fn set_namespace(&mut self, namespace: Namespace) {
        self.is_own_namespace = namespace == Namespace::Own;
    }

    /// Whether destroy events are evidence now.
    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    /// Whether they arrive, or are being tested.
    #[inline(never)]
    pub(super) fn expects_events(&self) -> bool {
        self.is_up || self.test_deadline().is_some()
    }

    /// Whether readings are all there is, though there should be events.
    pub(super) fn lacks_events(&self) -> bool {
        self.is_own_namespace && !self.expects_events()
    }

    /// Whether no event waits.
    pub(super) fn is_drained(&self) -> bool {
        self.is_drained || self.socket.is_none()
    }

    /// Takes in the events that arrived, at most `EVENTS_PER_TURN`, and hands
    /// all but the test's to `visit`, which says whether one is of a connection
    /// within the host. `None` without a socket.
    pub(super) fn take(
        &mut self,
        kernel: &mut impl Kernel,
        buffer: &mut [u8],
        now: Instant,
        mut visit: impl FnMut(&DiagSocket) -> bool,
    ) -> Option<Taken> {
        let socket = self.socket?;
        let mut taken = Taken::default();
        let (mut has_own, mut has_foreign) = (false, false);
        self.is_drained = false;
        for _ in 0..EVENTS_PER_TURN {
            match kernel.receive(socket, buffer) {
                Ok(count) => {
                    let bytes = head(buffer, count);
                    let malformed = walk_events(bytes, &mut |event| {
                        taken.events += 1;
                        let is_own = self.ends_test(&event) || visit(&event);
                        has_own |= is_own;
                        has_foreign |= !is_own;
                    });
                    taken.malformed += malformed as u64;
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::ENOBUFS) => taken.overflows += 1,
                // EAGAIN: there are no more.
                Err(_) => {
                    self.is_drained = true;
                    break;
                }
            }
        }
        let may_rest = has_own && !has_foreign;
        self.rest_until = may_rest.then(|| now.after(EVENTS_REST));
        Some(taken)
    }

    // The self-test.

    /// A test without an event by its deadline failed.
    pub(super) fn check_test(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if let Some(test) = &mut self.test
            && now.reaches(test.deadline)
        {
            test.deadline = None;
            self.log_down(kernel, b"the kernel sends none");
        }
    }

    /// Whether `check` is due: at start, and each `EVENTS_RETRY`.
    pub(super) fn is_check_due(&self, now: Instant) -> bool {
        now.is_past(self.next_check)
    }

    /// Opens the socket and starts a test, unless events are known to arrive.
    pub(super) fn check(&mut self, kernel: &mut impl Kernel, namespace: Namespace, now: Instant) {
        self.next_check = Some(now.after(EVENTS_RETRY));
        self.set_namespace(namespace);
        if namespace == Namespace::Other {
            self.log_down(kernel, b"--proc is of another network namespace");
        }
        if !self.is_own_namespace || self.is_up {
            return;
        }
        if self.socket.is_none() {
            self.socket = kernel.netlink(Netlink::DestroyEvents).ok();
        }
        if self.socket.is_none() {
            return self.log_down(kernel, b"no netlink socket for them");
        }
        match kernel.refused_connect() {
            Ok(port) => {
                let deadline = Some(now.after(SELF_TEST_WAIT_BUDGET));
                self.test = Some(SelfTest { port, deadline });
            }
            Err(_) => self.log_down(kernel, b"no loopback to test them"),
        }
    }

    /// Whether it is the test's event: events arrive.
    fn ends_test(&mut self, event: &DiagSocket) -> bool {
        let is_tested = self.test.is_some_and(|test| test.port == event.local.port);
        let is_test = is_tested && is_loopback(event.remote.address);
        if is_test {
            self.test = None;
            self.is_up = true;
            self.down.reset();
        }
        is_test
    }

    #[inline(never)]
    fn log_down(&mut self, kernel: &mut impl Kernel, why: &[u8]) {
        if self.down.say() {
            let words = b"; short connections are seen only where readings catch them";
            log_error(kernel, &[b"no destroy events: ", why, words]);
        }
    }
}
