//! The HTTP side: accept, receive, answer, send, close.

use crate::address::{Endpoint, UNSPECIFIED};
use crate::exposition;
use crate::http::{BODY_ROOM, ContentType, Exchange, Format, Request, Server, Status};
use crate::kernel::{Accepted, Descriptor, Errno, Interest, Kernel, Link, More, Path};
use crate::limits::{
    HTTP_ACCEPTS, HTTP_CLIENTS, HTTP_FRESH, HTTP_SAVINGS, HTTP_SHARE, START_RETRY,
};
use crate::metrics::{self, Metrics};
use crate::report::{self, error_words};
use crate::text::{Text, TextView};
use crate::time::{Duration, Instant, nearest};

use super::clock::Moment;
use super::cpu_share::CpuShare;
use super::names;
use super::output::{log_error, log_words};
use super::resources::Resources;

/// Steps of receiving, answering and sending that one client gets a turn:
/// pipelined requests must not hold up a reading.
const STEPS: usize = 4;

/// Descriptors that clients leave to what is opened after the listener: rows,
/// netlink sockets, and the pipes of a firewall command.
const SPARE_DESCRIPTORS: u64 = 20;

/// The live page, gzip'ed by `make page`.
const LIVE_PAGE: &[u8] = include_bytes!("../../dist/live.html.gz");

/// The listener and its clients; all bytes zero when new.
#[repr(C)]
pub(super) struct Web {
    /// Where HTTP is served. No `Option`, whose `None` is not all zero bytes.
    address: Endpoint,
    listener: Option<Descriptor>,
    /// When listen(2) is tried again after it failed.
    next_listen: Option<Instant>,
    /// When accept(2) is tried again after it failed.
    next_accept: Option<Instant>,
    /// Clients to accept in one turn: an accept that finds none costs as much
    /// as one that does, so more than one are tried only where turns before
    /// left some waiting.
    accept_burst: usize,
    /// Closed for a moment where no other descriptor is left.
    spare_descriptor: Option<Descriptor>,
    /// Clients that RLIMIT_NOFILE leaves room for.
    clients_max: u64,
    share: CpuShare,
    server: Server<HTTP_CLIENTS>,
    page: Page,
}

/// The metrics as they were written last: scrapers that ask at once share them.
#[repr(C)]
struct Page {
    fresh_until: Option<Instant>,
    format: Format,
    text: Text<BODY_ROOM>,
}

impl Web {
    pub(super) const fn new() -> Self {
        Self {
            address: Endpoint::BLANK,
            listener: None,
            next_listen: None,
            next_accept: None,
            accept_burst: 0,
            spare_descriptor: None,
            clients_max: 0,
            share: CpuShare::new(),
            server: Server::new(),
            page: Page {
                fresh_until: None,
                format: Format::Text,
                text: Text::new(),
            },
        }
    }

    /// Binds the listener at start; what fails is tried again, since a port that
    /// another program took first must not keep us from blocking. Without IPv6
    /// in the kernel [::] means 0.0.0.0.
    #[inline(never)]
    pub(super) fn start(&mut self, kernel: &mut impl Kernel, address: Endpoint, now: Instant) {
        self.address = address;
        self.share.start(HTTP_SHARE, HTTP_SAVINGS);
        let mut result = self.listen(kernel);
        if result == Err(Errno::EAFNOSUPPORT) && address.address.is_unspecified() {
            self.address.address = UNSPECIFIED;
            result = self.listen(kernel);
        }
        let status = kernel.process_status();
        let taken = status.open_descriptors.saturating_add(SPARE_DESCRIPTORS);
        let limit = status.max_descriptors.unwrap_or(u64::MAX);
        self.clients_max = limit.saturating_sub(taken).max(1);
        if let Err(error) = result {
            self.next_listen = Some(now);
            let place = report::endpoint_words(b"cannot listen on ", self.address, b": ");
            let why = error_words(error);
            let words = [place.as_bytes(), why.as_bytes(), b"; it is tried again"];
            log_error(kernel, &words);
        }
    }

    /// An address that is not there yet, or in use, may come later.
    pub(super) fn listen_when_due(&mut self, kernel: &mut impl Kernel, now: Instant) {
        if !now.reaches(self.next_listen) {
            return;
        }
        self.next_listen = Some(now.after(START_RETRY));
        if self.listen(kernel).is_ok() {
            let words = report::endpoint_words(b"listening on ", self.address, b" now");
            log_words(kernel, words.as_bytes());
        }
    }

    fn listen(&mut self, kernel: &mut impl Kernel) -> Result<(), Errno> {
        self.listener = Some(kernel.listen(self.address)?);
        self.next_listen = None;
        self.keep_spare_descriptor(kernel);
        Ok(())
    }

    /// Whether to listen still takes a right: low ports are not everyone's (ip(7)).
    pub(super) fn awaits_port(&self) -> bool {
        self.next_listen.is_some() && self.address.port < 1_024
    }

    /// Where our own listener listens.
    pub(super) fn own_listener(&self) -> Option<Endpoint> {
        self.listener.map(|_| self.address)
    }

    /// The listener, unless there is a pause.
    pub(super) fn listener(&self, now: Instant) -> Option<Descriptor> {
        if self.may_serve(now) && self.next_accept.is_none() {
            self.listener
        } else {
            None
        }
    }

    /// What clients wait for.
    pub(super) fn interests(&self, now: Instant) -> impl Iterator<Item = Interest> {
        let may_serve = self.may_serve(now);
        self.server.interests().filter(move |_| may_serve)
    }

    /// Not while what clients asked for is not paid.
    fn may_serve(&self, now: Instant) -> bool {
        self.share.paid_at(now).is_none()
    }

    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let next = nearest(self.next_listen, self.next_accept);
        let next = nearest(next, self.share.paid_at(now));
        nearest(next, self.server.deadline())
    }

    /// Clients cost so much of the processor's time.
    pub(super) fn pay(&mut self, cost: Duration, now: Instant) {
        self.share.earn(now);
        self.share.pay(cost, now);
    }

    /// Whether accept(2) is worth a try after a poll(2) that found clients or none.
    pub(super) fn may_accept(&self, has_clients: bool) -> bool {
        has_clients || self.next_accept.is_some()
    }

    /// The next `accept` takes a whole burst, however few came lately.
    pub(super) fn expect_burst(&mut self) {
        self.accept_burst = HTTP_ACCEPTS;
    }

    /// How many of the clients that wait to accept now, at most.
    pub(super) fn begin_burst(&mut self, kernel: &mut impl Kernel, now: Instant) -> usize {
        if now.once_past(self.next_accept, self.listener).is_none() {
            return 0;
        }
        self.next_accept = None;
        self.keep_spare_descriptor(kernel);
        let burst = self.accept_burst.clamp(1, HTTP_ACCEPTS);
        self.accept_burst = 2 * burst;
        burst
    }

    /// Accepts the next of a burst, of which so many are left.
    pub(super) fn accept(
        &mut self,
        kernel: &mut impl Kernel,
        metrics: &mut Metrics,
        left: &mut usize,
        now: Instant,
    ) -> Option<Accepted> {
        let listener = self.listener?;
        while *left > 0 {
            *left -= 1;
            match kernel.accept(listener) {
                Ok(accepted) => {
                    self.accept_client(kernel, metrics, &accepted, now);
                    return Some(accepted);
                }
                Err(Errno::EAGAIN) => {
                    self.accept_burst = 1;
                    break;
                }
                // The client gave up meanwhile (accept(2)).
                Err(Errno::EINTR | Errno::ECONNABORTED | Errno::EPROTO) => {}
                Err(Errno::EMFILE | Errno::ENFILE) if self.make_room(kernel, metrics, listener) => {
                }
                Err(_) => {
                    // The listener stays ready: without a pause we would spin.
                    self.next_accept = Some(now.after(START_RETRY));
                    break;
                }
            }
        }
        None
    }

    #[inline(never)]
    fn accept_client(
        &mut self,
        kernel: &mut impl Kernel,
        metrics: &mut Metrics,
        accepted: &Accepted,
        now: Instant,
    ) {
        metrics.count(metrics::HTTP_CLIENTS_ACCEPTED);
        if self.server.len() as u64 >= self.clients_max {
            self.evict(kernel, metrics);
        }
        let (client, peer) = (accepted.descriptor, accepted.remote.address);
        let evicted = self.server.accept(client, peer, now);
        close_evicted(kernel, metrics, evicted);
    }

    /// Closes the oldest client; whether there was one.
    fn evict(&mut self, kernel: &mut impl Kernel, metrics: &mut Metrics) -> bool {
        let evicted = self.server.evict();
        close_evicted(kernel, metrics, evicted);
        evicted.is_some()
    }

    /// No descriptor is left for a client that waits: the oldest one is closed.
    /// Where there is none, the spare descriptor makes room to turn the waiting
    /// one away rather than let it run into its own timeout.
    fn make_room(
        &mut self,
        kernel: &mut impl Kernel,
        metrics: &mut Metrics,
        listener: Descriptor,
    ) -> bool {
        if self.evict(kernel, metrics) {
            return true;
        }
        let Some(spare) = self.spare_descriptor.take() else {
            return false;
        };
        kernel.close(spare);
        if let Ok(accepted) = kernel.accept(listener) {
            metrics.count(metrics::HTTP_CLIENTS_ACCEPTED);
            close_evicted(kernel, metrics, Some(accepted.descriptor));
        }
        self.keep_spare_descriptor(kernel);
        self.spare_descriptor.is_some()
    }

    fn keep_spare_descriptor(&mut self, kernel: &mut impl Kernel) {
        if self.spare_descriptor.is_none() {
            let file = kernel.open(&Path::from_bytes(b"/dev/null"), Link::Follow);
            self.spare_descriptor = file.ok().map(|file| file.descriptor);
        }
    }

    /// Does what the clients' sockets are ready for.
    pub(super) fn service_clients(
        &mut self,
        kernel: &mut impl Kernel,
        found: &[Interest],
        metrics: &mut Metrics,
        resources: &Resources,
        moment: Moment,
    ) {
        metrics.set(metrics::HTTP_CLIENTS, self.server.len() as u64);
        for interest in found.iter().filter(|interest| interest.is_met()) {
            if let Some(exchange) = self.server.find(interest.descriptor) {
                service_client(kernel, exchange, &mut self.page, metrics, resources, moment);
            }
        }
    }

    /// Closes the clients that are finished or out of time.
    pub(super) fn close_clients(&mut self, kernel: &mut impl Kernel, moment: Moment) {
        let unix_seconds = moment.unix_seconds();
        while let Some(client) = self.server.next_to_close(moment.now, unix_seconds) {
            kernel.close(client);
        }
    }
}

impl Page {
    /// Writes all metrics down, unless they were a moment ago.
    #[inline(never)]
    fn update(
        &mut self,
        kernel: &mut impl Kernel,
        format: Format,
        metrics: &mut Metrics,
        resources: &Resources,
        now: Instant,
    ) {
        if self.format == format && !now.is_past(self.fresh_until) {
            return;
        }
        resources.update_gauges(metrics);
        metrics.set_process(&kernel.process_status());
        self.text.clear();
        exposition::write(metrics, format, &mut self.text);
        self.format = format;
        self.fresh_until = Some(now.after(HTTP_FRESH));
    }
}

#[inline(never)]
fn close_evicted(kernel: &mut impl Kernel, metrics: &mut Metrics, evicted: Option<Descriptor>) {
    if let Some(client) = evicted {
        metrics.count(metrics::HTTP_CLIENTS_EVICTED);
        kernel.close(client);
    }
}

#[inline(never)]
fn service_client(
    kernel: &mut impl Kernel,
    exchange: &mut Exchange,
    page: &mut Page,
    metrics: &mut Metrics,
    resources: &Resources,
    moment: Moment,
) {
    let now = moment.now;
    for _ in 0..STEPS {
        let received = receive(kernel, exchange, now);
        let answered = answer(kernel, exchange, page, metrics, resources, moment);
        let sent = send(kernel, exchange, now);
        if exchange.take_shutdown() {
            shutdown(kernel, exchange, now);
        }
        if exchange.is_finished() || !(received || answered || sent) {
            return;
        }
    }
}

/// Receives what is there; whether there was anything.
#[inline(never)]
fn receive(kernel: &mut impl Kernel, exchange: &mut Exchange, now: Instant) -> bool {
    let Interest {
        descriptor: Some(client),
        readable: true,
        ..
    } = exchange.interest()
    else {
        return false;
    };
    match kernel.receive(client, exchange.room()) {
        Ok(0) => exchange.end_of_input(),
        Ok(count) => exchange.received(count, now),
        Err(Errno::EINTR) => {}
        Err(Errno::EAGAIN) => return false,
        Err(_) => exchange.fail(),
    }
    true
}

/// Sends what the client takes; whether it took anything.
fn send(kernel: &mut impl Kernel, exchange: &mut Exchange, now: Instant) -> bool {
    if exchange.to_send().is_empty() {
        // The last part of a list can be nothing at all.
        exchange.sent(0, now);
        return false;
    }
    let (Some(client), bytes) = (exchange.descriptor(), exchange.to_send()) else {
        return false;
    };
    let more = if exchange.is_last_answer() {
        More::Fin
    } else {
        More::No
    };
    match kernel.send(client, bytes, more) {
        Ok(count) => {
            exchange.sent(count, now);
            return count > 0;
        }
        Err(Errno::EINTR) => {}
        Err(Errno::EAGAIN) => return false,
        Err(_) => exchange.fail(),
    }
    true
}

fn shutdown(kernel: &mut impl Kernel, exchange: &mut Exchange, now: Instant) {
    let client = exchange.descriptor();
    if client.is_some_and(|client| kernel.shutdown_sending(client)) {
        exchange.linger(now);
    }
}

/// Answers the client's next request; whether it has one.
#[inline(never)]
fn answer(
    kernel: &mut impl Kernel,
    exchange: &mut Exchange,
    page: &mut Page,
    metrics: &mut Metrics,
    resources: &Resources,
    moment: Moment,
) -> bool {
    count_status(exchange, metrics);
    let Some(request) = exchange.next_request(moment.unix_seconds()) else {
        return false;
    };
    match request {
        Request::Metrics(format) => {
            page.update(kernel, format, metrics, resources, moment.now);
            answer_metrics(exchange, &page.text, format);
        }
        Request::Healthz => answer_health(exchange, resources.trouble(moment.now)),
        Request::Page | Request::Blocked { cursor: 0, .. }
            if !may_see(kernel, exchange, request, resources) =>
        {
            exchange.refuse(Status::Forbidden);
        }
        Request::Page => exchange.respond(Status::Ok, ContentType::Page, &[LIVE_PAGE]),
        Request::Blocked {
            is_detailed,
            cursor,
        } => answer_blocked(exchange, cursor, resources, is_detailed.then_some(moment)),
        Request::Error(_) => {}
    }
    count_status(exchange, metrics);
    true
}

#[inline(never)]
fn count_status(exchange: &mut Exchange, metrics: &mut Metrics) {
    if let Some(status) = exchange.take_status() {
        metrics.count(metrics::HTTP_REQUESTS.of(status));
    }
}

fn answer_metrics(exchange: &mut Exchange, page: &TextView, format: Format) {
    if page.is_truncated() {
        exchange.refuse(Status::InternalError);
    } else {
        exchange.respond(Status::Ok, ContentType::Metrics(format), &[page.as_bytes()]);
    }
}

fn answer_health(exchange: &mut Exchange, trouble: Option<[&[u8]; 2]>) {
    match trouble {
        None => exchange.respond(Status::Ok, ContentType::Plain, &[b"ok\n"]),
        Some(words) => {
            exchange.respond(Status::ServiceUnavailable, ContentType::Plain, &words);
        }
    }
}

/// Whether a client may see which sources are blocked, or the page that shows
/// them: nothing that another web page may have a browser read.
fn may_see(
    kernel: &mut impl Kernel,
    exchange: &Exchange,
    request: Request,
    resources: &Resources,
) -> bool {
    (request == Request::Page || resources.may_list(exchange.peer()))
        && names::is_ours(kernel, exchange.host())
}

/// `details`: with all that is known of each block at this moment.
#[inline(never)]
fn answer_blocked(
    exchange: &mut Exchange,
    cursor: u32,
    resources: &Resources,
    details: Option<Moment>,
) {
    let mut undo: Text<{ report::UNDO_FIELD }> = Text::new();
    if details.is_some() {
        report::put_undo_field(&mut undo, &resources.commands.advice());
    }
    exchange.respond_part(undo.as_bytes(), |body| {
        resources.list_blocked(cursor, body, details)
    });
}
