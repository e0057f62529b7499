//! The HTTP side: accept, receive, answer, send, close.

use crate::address::{Endpoint, Network, is_loopback};
use crate::exposition::{self, Format, Snapshot};
use crate::http::{ContentType, Exchange, Request, Status};
use crate::kernel::{Accepted, Descriptor, Errno, Interest, Kernel, Path};
use crate::limits::{HTTP_ACCEPTS, HTTP_FRESH, START_RETRY};
use crate::report;
use crate::time::Instant;

use super::output::error_words;
use super::{Daemon, is_ready};

/// Steps of receiving, answering and sending that one client gets a turn:
/// pipelined requests must not hold up a reading.
const STEPS: usize = 16;

/// Descriptors that clients leave to what is opened after the listener: rows,
/// netlink sockets, and the pipes of a firewall command.
const SPARE_DESCRIPTORS: u64 = 20;

impl Daemon {
    pub(super) fn serve(&mut self, kernel: &mut impl Kernel, found: &[Interest]) {
        self.listen_when_due(kernel);
        for interest in found.iter().filter(|interest| interest.is_met()) {
            self.attend(kernel, interest.descriptor);
        }
        let is_ready = self
            .listener
            .is_some_and(|listener| is_ready(found, listener));
        if is_ready || self.next_accept != Instant::BOOT {
            self.accept(kernel);
        }
        let now = kernel.boottime();
        let unix_seconds = kernel.realtime() / 1_000_000_000;
        while let Some(descriptor) = self.server.next_to_close(now, unix_seconds) {
            kernel.close(descriptor);
        }
    }

    /// An address that is not there yet, or in use, may come later.
    fn listen_when_due(&mut self, kernel: &mut impl Kernel) {
        let now = kernel.boottime();
        let address = self.listen_address;
        if address.port == 0 || self.listener.is_some() || now < self.next_listen {
            return;
        }
        self.next_listen = now.after(START_RETRY);
        if let Ok(listener) = kernel.listen(address) {
            self.listener = Some(listener);
            self.keep_reserve(kernel);
            self.complain(
                kernel,
                &[report::endpoint_words(b"listening on ", address, b" now").as_bytes()],
            );
        }
    }

    /// Accepts a whole burst of those who wait, however few came lately.
    pub(super) fn accept_waiting(&mut self, kernel: &mut impl Kernel) {
        self.accept_burst = HTTP_ACCEPTS;
        self.accept(kernel);
    }

    /// Accepts who waits, at most `accept_burst` of them.
    fn accept(&mut self, kernel: &mut impl Kernel) {
        let now = kernel.boottime();
        let Some(listener) = self.listener.filter(|_| now >= self.next_accept) else {
            return;
        };
        self.next_accept = Instant::BOOT;
        self.keep_reserve(kernel);
        let burst = self.accept_burst.clamp(1, HTTP_ACCEPTS);
        self.accept_burst = 2 * burst;
        for _ in 0..burst {
            match kernel.accept(listener) {
                Ok(accepted) => self.welcome(kernel, &accepted),
                Err(Errno::EAGAIN) => {
                    self.accept_burst = 1;
                    return;
                }
                // The client gave up meanwhile (accept(2)).
                Err(Errno::EINTR | Errno::ECONNABORTED | Errno::EPROTO) => {}
                Err(Errno::EMFILE | Errno::ENFILE) if self.make_room(kernel, listener) => {}
                Err(_) => {
                    // The listener stays ready: without a pause we would spin.
                    self.next_accept = now.after(START_RETRY);
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, kernel: &mut impl Kernel, accepted: &Accepted) {
        self.metrics.http_clients_accepted += 1;
        if self.server.len() as u64 >= self.clients_max {
            self.evict(kernel);
        }
        let now = kernel.boottime();
        self.see_client(accepted, now);
        let (client, peer) = (accepted.descriptor, accepted.remote.address);
        if let Some(gave_way) = self.server.accept(client, peer, now) {
            self.metrics.http_clients_evicted += 1;
            kernel.close(gave_way);
        }
    }

    /// The oldest client gives way; whether there was one.
    fn evict(&mut self, kernel: &mut impl Kernel) -> bool {
        let gave_way = self.server.evict();
        if let Some(client) = gave_way {
            self.metrics.http_clients_evicted += 1;
            kernel.close(client);
        }
        gave_way.is_some()
    }

    /// No descriptor is left for a client that waits: the oldest one gives way.
    /// Where there is none, the reserve makes room to turn the waiting one away
    /// rather than let it wait for its own patience to end.
    fn make_room(&mut self, kernel: &mut impl Kernel, listener: Descriptor) -> bool {
        if self.evict(kernel) {
            return true;
        }
        let Some(reserve) = self.reserve.take() else {
            return false;
        };
        kernel.close(reserve);
        if let Ok(accepted) = kernel.accept(listener) {
            self.metrics.http_clients_accepted += 1;
            self.metrics.http_clients_evicted += 1;
            kernel.close(accepted.descriptor);
        }
        self.keep_reserve(kernel);
        self.reserve.is_some()
    }

    fn keep_reserve(&mut self, kernel: &mut impl Kernel) {
        if self.reserve.is_none() {
            self.reserve = kernel.open(&Path::from_bytes(b"/dev/null")).ok();
        }
    }

    /// Does what one client's socket is ready for.
    fn attend(&mut self, kernel: &mut impl Kernel, client: Descriptor) {
        for _ in 0..STEPS {
            let now = kernel.boottime();
            let Some(exchange) = self.server.find(client) else {
                return;
            };
            let received = receive(kernel, exchange, now);
            let answered = self.answer(kernel, client);
            let Some(exchange) = self.server.find(client) else {
                return;
            };
            let sent = send(kernel, exchange, now);
            if exchange.take_shutdown() {
                kernel.shutdown_sending(client);
                if kernel.has_unsent(client) {
                    exchange.linger(now);
                }
            }
            if exchange.is_finished() || !(received || answered || sent) {
                return;
            }
        }
    }

    /// Answers the client's next request, if it has one.
    fn answer(&mut self, kernel: &mut impl Kernel, client: Descriptor) -> bool {
        let unix_seconds = kernel.realtime() / 1_000_000_000;
        self.count_status(client);
        let Some(exchange) = self.server.find(client) else {
            return false;
        };
        let Some(request) = exchange.next_request(unix_seconds) else {
            return false;
        };
        match request {
            Request::Metrics { openmetrics } => self.answer_metrics(kernel, client, openmetrics),
            Request::Healthz => self.answer_health(kernel, client),
            Request::Blocked { cursor } => self.answer_blocked(client, cursor),
            Request::Error(_) => {}
        }
        self.count_status(client);
        true
    }

    fn count_status(&mut self, client: Descriptor) {
        if let Some(status) = self.server.find(client).and_then(Exchange::take_status) {
            self.metrics.http_requests.count(status);
        }
    }

    fn answer_metrics(&mut self, kernel: &mut impl Kernel, client: Descriptor, openmetrics: bool) {
        let (format, content_type) = if openmetrics {
            (Format::OpenMetrics, ContentType::OpenMetrics)
        } else {
            (Format::Text, ContentType::Prometheus)
        };
        self.expose(kernel, format);
        let Some(exchange) = self.server.find(client) else {
            return;
        };
        if self.exposed.is_truncated() {
            exchange.refuse(Status::InternalError);
        } else {
            exchange.respond(Status::Ok, content_type, |body| {
                body.put(self.exposed.as_bytes());
            });
        }
    }

    /// Writes all metrics down, unless they were a moment ago.
    fn expose(&mut self, kernel: &mut impl Kernel, format: Format) {
        let now = kernel.boottime();
        if self.exposed_format == format && now < self.exposed_until {
            return;
        }
        self.update_gauges();
        let snapshot = Snapshot {
            metrics: &self.metrics,
            process: kernel.process_status(),
            start_unix_nanoseconds: self.started,
        };
        self.exposed.clear();
        exposition::write(&snapshot, format, &mut self.exposed);
        self.exposed_format = format;
        self.exposed_until = now.after(HTTP_FRESH);
    }

    fn answer_health(&mut self, kernel: &mut impl Kernel, client: Descriptor) {
        let now = kernel.boottime();
        let trouble = if self.is_reading_well(now) {
            self.blocking_trouble()
        } else {
            Some((&b""[..], &b"the last good reading is too old\n"[..]))
        };
        let status = if trouble.is_none() {
            Status::Ok
        } else {
            Status::ServiceUnavailable
        };
        let (subject, words) = trouble.unwrap_or((b"", b"ok\n"));
        if let Some(exchange) = self.server.find(client) {
            exchange.respond(status, ContentType::Plain, |body| {
                body.put(subject);
                body.put(words);
            });
        }
    }

    /// The list is for neighbours: who is blocked is nobody else's business.
    fn answer_blocked(&mut self, client: Descriptor, cursor: u32) {
        let Some(exchange) = self.server.find(client) else {
            return;
        };
        let peer = Network::single(exchange.peer());
        let is_allowed = is_loopback(exchange.peer())
            || self.host.is_on_link(peer)
            || self
                .options
                .allow
                .iter()
                .any(|network| network.overlaps(peer));
        if cursor == 0 && !is_allowed {
            return exchange.refuse(Status::Forbidden);
        }
        let firewall = &self.firewall;
        exchange.respond_part(|body| {
            let mut next = cursor;
            while let Some((at, source)) = firewall.standing_from(next) {
                if body.room() < CIDR_LINE {
                    return Some(next);
                }
                report::cidr_line(body, source);
                next = at + 1;
            }
            None
        });
    }

    /// Binds the listener at start; what fails is tried again, since a port that
    /// another program took first must not keep us from blocking. Without IPv6
    /// in the kernel [::] means 0.0.0.0.
    pub(super) fn listen(&mut self, kernel: &mut impl Kernel, mut address: Endpoint) {
        let mut result = kernel.listen(address);
        if result == Err(Errno::EAFNOSUPPORT) && address.address.is_unspecified() {
            address.address = crate::address::UNSPECIFIED;
            result = kernel.listen(address);
        }
        self.listen_address = address;
        let status = kernel.process_status();
        let taken = status.open_descriptors.saturating_add(SPARE_DESCRIPTORS);
        let limit = status.max_descriptors.unwrap_or(u64::MAX);
        self.clients_max = limit.saturating_sub(taken).max(1);
        match result {
            Ok(listener) => {
                self.listener = Some(listener);
                self.keep_reserve(kernel);
            }
            Err(error) => {
                let place = report::endpoint_words(b"cannot listen on ", address, b": ");
                let why = error_words(error);
                self.complain(
                    kernel,
                    &[place.as_bytes(), why.as_bytes(), b"; it is tried again"],
                );
            }
        }
    }
}

/// The longest line of `/blocked`: an IPv6 address with its length.
const CIDR_LINE: usize = 48;

/// Receives what is there; whether there was anything.
fn receive(kernel: &mut impl Kernel, exchange: &mut Exchange, now: Instant) -> bool {
    let client = exchange.descriptor();
    if !exchange.interest().readable {
        return false;
    }
    match kernel.receive(client, exchange.room()) {
        Ok(0) => {
            exchange.end_of_input();
            true
        }
        Ok(count) => {
            exchange.received(count, now);
            true
        }
        Err(Errno::EINTR) => true,
        Err(Errno::EAGAIN) => false,
        Err(_) => {
            exchange.fail();
            true
        }
    }
}

/// Sends what the client takes; whether it took anything.
fn send(kernel: &mut impl Kernel, exchange: &mut Exchange, now: Instant) -> bool {
    if exchange.to_send().is_empty() {
        // The last part of a list can be nothing at all.
        exchange.sent(0, now);
        return false;
    }
    let (client, bytes) = (exchange.descriptor(), exchange.to_send());
    let result = if exchange.is_last_answer() {
        kernel.send_last(client, bytes)
    } else {
        kernel.send(client, bytes)
    };
    match result {
        Ok(count) => {
            exchange.sent(count, now);
            count > 0
        }
        Err(Errno::EINTR) => true,
        Err(Errno::EAGAIN) => false,
        Err(_) => {
            exchange.fail();
            true
        }
    }
}
