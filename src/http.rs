//! HTTP/1.1 and 1.0 (RFC 9110, RFC 9112) for a handful of resources: bytes in,
//! requests and answers out. No I/O.
//!
//! A `Server` holds one `Exchange` for each client. Its caller, each turn:
//!
//! ```text
//! accept      -> server.accept                     close the evicted one
//! readable    -> exchange.room, recv, exchange.received or end_of_input
//! then        -> exchange.next_request, exchange.respond     until `None`
//! writable    -> exchange.to_send, send, exchange.sent
//!                exchange.take_shutdown            shutdown(2) if it says so,
//!                                                  then exchange.linger where
//!                                                  not all was sent
//! at the end  -> server.next_to_close              close until `None`
//! sleep until -> server.deadline
//! ```
//!
//! The head of a request is read line by line as bytes come, each byte looked
//! at once, so the answer depends on the bytes alone and not on how they were
//! split, and one byte a second costs no more than all at once.

use core::mem;
use core::net::IpAddr;

use crate::address::UNSPECIFIED;
use crate::kernel::{Descriptor, Interest};
use crate::label::label;
use crate::limits::{
    HTTP_EXCHANGE_DEADLINE, HTTP_HEADER_DEADLINE, HTTP_KEEP_ALIVE, HTTP_LINGER, HTTP_LINGER_BYTES,
    HTTP_REQUEST, HTTP_RESPONSE,
};
use crate::text::{
    Text, TextView, before, eq_ignore_case, has_byte, parse_decimal, place, split, split_once, trim,
};
use crate::time::{Calendar, Date, Duration, Instant, nearest, order};

/// Bytes kept free before a body for its head.
const HEAD_ROOM: usize = 1_024;
/// Bytes kept of Host: a longer one is no name of ours, nor is its beginning.
const HOST_ROOM: usize = 256;
/// Bytes a body can have in one piece.
pub const BODY_ROOM: usize = HTTP_RESPONSE - HEAD_ROOM;

/// Declares the status codes once: variant, code and reason phrase.
macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:literal $reason:literal,)+) => {
        /// The status codes we answer with (RFC 9110 section 15).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Status { $($(#[$doc])* $name,)+ }

        impl Status {
            /// Every status.
            #[cfg(test)]
            pub const ALL: [Self; [$($code),+].len()] = [$(Self::$name,)+];

            /// The code and the reason phrase.
            pub fn words(self) -> &'static [u8] {
                let all = concat!($($code, " ", $reason, "\n",)+);
                split(all.as_bytes(), b'\n').nth(self as usize).unwrap_or_default()
            }
        }

        label!(Status, "code", 0, [$($code),+]);
    };
}

statuses! {
    /// The answer is the resource.
    Ok = "200" "OK",
    /// Not HTTP, or framed so that its end cannot be known.
    BadRequest = "400" "Bad Request",
    /// Not for this client.
    Forbidden = "403" "Forbidden",
    /// No such resource.
    NotFound = "404" "Not Found",
    /// A method other than GET and HEAD.
    MethodNotAllowed = "405" "Method Not Allowed",
    /// The headers did not come in time.
    RequestTimeout = "408" "Request Timeout",
    /// The request has a body, which no resource here takes.
    ContentTooLarge = "413" "Content Too Large",
    /// The request line does not fit.
    UriTooLong = "414" "URI Too Long",
    /// The headers do not fit.
    HeadersTooLarge = "431" "Request Header Fields Too Large",
    /// The answer did not fit its buffer.
    InternalError = "500" "Internal Server Error",
    /// Not healthy.
    ServiceUnavailable = "503" "Service Unavailable",
    /// A major version other than 1.
    VersionNotSupported = "505" "HTTP Version Not Supported",
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

/// What a body is (RFC 9110 section 8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// Text for people.
    Plain,
    /// Metrics.
    Metrics(Format),
    /// The live page.
    Page,
}

impl ContentType {
    /// The field value; of the page with the fields behind it. It may run the
    /// script and the style that came with it, ask this daemon, and nothing else,
    /// whatever text it is made to show.
    pub const fn value(self) -> &'static str {
        match self {
            Self::Plain => "text/plain; charset=utf-8",
            Self::Metrics(Format::Text) => "text/plain; version=0.0.4; charset=utf-8",
            Self::Metrics(Format::OpenMetrics) => {
                "application/openmetrics-text; version=1.0.0; charset=utf-8"
            }
            Self::Page => concat!(
                "text/html; charset=utf-8\r\nContent-Encoding: gzip\r\nCache-Control: no-cache\r\n",
                "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n",
                "Content-Security-Policy: ",
                include_str!("../dist/live.csp")
            ),
        }
    }
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The metrics: call `respond`.
    Metrics(Format),
    /// The live page: call `respond`, or `refuse`.
    Page,
    /// Whether all is well: call `respond`.
    Healthz,
    /// The blocked sources: call `respond_part`, or `refuse`.
    Blocked {
        /// Each with all that is known of its block.
        is_detailed: bool,
        /// Where the list goes on: 0 first, then what the last part returned.
        cursor: u32,
    },
    /// Answered already; to be counted at most.
    Error(Status),
}

/// What a path names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resource {
    /// Nothing we have.
    Unknown,
    /// The live page for browsers, the metrics for all others.
    Root,
    Metrics,
    Healthz,
    Blocked,
    Blocks,
}

/// Which transfer coding is the last one (RFC 9112 section 6.1).
#[derive(Clone, Copy, PartialEq, Eq)]
enum TransferCoding {
    Absent,
    Chunked,
    /// Not chunked, or chunked twice: the end of the body cannot be known.
    Endless,
}

/// What the lines of a request's head said so far. All zero is nothing.
struct Head {
    /// The request line was read.
    started: bool,
    /// The last byte was a carriage return: only a line feed may follow.
    after_return: bool,
    method_allowed: bool,
    is_head: bool,
    /// The target is neither a path nor an http URI.
    odd_target: bool,
    resource: Resource,
    /// HTTP/1.1 or a later 1.x, not 1.0.
    is_1_1: bool,
    hosts: u32,
    host: Text<HOST_ROOM>,
    content_length: Option<u64>,
    transfer_coding: TransferCoding,
    close: bool,
    keep_alive: bool,
    /// The best quality Accept gives each format, in thousandths.
    openmetrics_quality: u32,
    text_quality: u32,
    page_quality: u32,
    /// What Accept-Encoding says of gzip: 1 yes, 0 no; named, and not by `*`
    /// only: 2 more.
    gzip: u8,
}

impl Head {
    const fn new() -> Self {
        Self {
            started: false,
            after_return: false,
            method_allowed: false,
            is_head: false,
            odd_target: false,
            resource: Resource::Unknown,
            is_1_1: false,
            hosts: 0,
            host: Text::new(),
            content_length: None,
            transfer_coding: TransferCoding::Absent,
            close: false,
            keep_alive: false,
            openmetrics_quality: 0,
            text_quality: 0,
            page_quality: 0,
            gzip: 0,
        }
    }

    /// Whether `byte` may come next. Beyond the grammar of RFC 9112 section 3
    /// and RFC 9110 section 5.5 nothing is let in: a TLS hello or a NUL is
    /// known by its first wrong byte, and a line feed alone ends no line.
    fn admits(&mut self, byte: u8) -> bool {
        let after_return = mem::replace(&mut self.after_return, byte == b'\r');
        match byte {
            b'\n' => after_return,
            _ if after_return => false,
            b'\r' | b' '..=b'~' => true,
            b'\t' | 0x80..=0xff => self.started,
            _ => false,
        }
    }

    /// Takes a whole line without its end. True: the head is complete.
    fn take_line(&mut self, line: &[u8]) -> Result<bool, Status> {
        match (self.started, line) {
            // RFC 9112 section 2.2: empty lines before a request are ignored.
            (false, []) => Ok(false),
            (false, _) => self.take_request_line(line).map(|()| false),
            (true, []) => Ok(true),
            (true, _) => self.take_field(line).map(|()| false),
        }
    }

    /// RFC 9112 section 3: method, target and version with one blank between.
    #[inline(never)]
    fn take_request_line(&mut self, line: &[u8]) -> Result<(), Status> {
        let mut words = split(line, b' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(Status::BadRequest);
        };
        if !is_token(method) || target.is_empty() {
            return Err(Status::BadRequest);
        }
        // A HEAD that is refused gets no body either.
        self.is_head = method == b"HEAD";
        self.is_1_1 = parse_version(version)? >= 1;
        self.started = true;
        self.method_allowed = self.is_head || method == b"GET";
        match path_of(target) {
            Some(path) => self.resource = resource_of(path),
            None => self.odd_target = true,
        }
        Ok(())
    }

    /// RFC 9112 section 5: a name, a colon right behind it, a value. A line
    /// that begins with a blank (obs-fold, section 5.2) has no such name.
    #[inline(never)]
    fn take_field(&mut self, line: &[u8]) -> Result<(), Status> {
        let (name, value) = split_once(line, b':');
        if !has_byte(line, b':') || !is_token(name) {
            return Err(Status::BadRequest);
        }
        let value = trim(value);
        let known = b"host|content-length|transfer-encoding|connection|accept|accept-encoding";
        match place(known, name, eq_ignore_case) {
            Some(0) => return self.take_host(value),
            Some(1) => return self.take_content_length(value),
            Some(2) => self.take_transfer_encoding(value),
            Some(3) => self.take_connection(value),
            Some(4) => self.take_preferences(value, false),
            Some(5) => self.take_preferences(value, true),
            _ => {}
        }
        Ok(())
    }

    /// RFC 9112 section 3.2: one Host with a valid value, however old the
    /// version.
    fn take_host(&mut self, value: &[u8]) -> Result<(), Status> {
        self.hosts += 1;
        if self.hosts > 1 || !is_host(value) {
            return Err(Status::BadRequest);
        }
        self.host.put(value);
        Ok(())
    }

    /// RFC 9112 section 6.3: repetitions of one valid number are that number,
    /// anything else is an unrecoverable error.
    fn take_content_length(&mut self, value: &[u8]) -> Result<(), Status> {
        for number in split(value, b',') {
            let number = parse_decimal(trim(number)).ok_or(Status::BadRequest)?;
            if self.content_length.is_some_and(|other| other != number) {
                return Err(Status::BadRequest);
            }
            self.content_length = Some(number);
        }
        Ok(())
    }

    fn take_transfer_encoding(&mut self, value: &[u8]) {
        for coding in split(value, b',').map(trim) {
            let is_chunked = eq_ignore_case(coding, b"chunked");
            self.transfer_coding = match (self.transfer_coding, is_chunked) {
                (TransferCoding::Absent | TransferCoding::Endless, true) => TransferCoding::Chunked,
                // Chunked twice is not allowed either (section 6.1).
                (TransferCoding::Chunked, true) | (_, false) => TransferCoding::Endless,
            };
        }
    }

    fn take_connection(&mut self, value: &[u8]) {
        for option in split(value, b',').map(trim) {
            self.close |= eq_ignore_case(option, b"close");
            self.keep_alive |= eq_ignore_case(option, b"keep-alive");
        }
    }

    /// Accept and Accept-Encoding (RFC 9110 sections 12.5.1 and 12.5.3). A
    /// wildcard names no format, another version is another format; `*` is any
    /// coding that is not named.
    #[inline(never)]
    fn take_preferences(&mut self, value: &[u8], are_codings: bool) {
        for element in split(value, b',') {
            let (name, quality, version) = parse_element(element);
            if are_codings {
                if let Some(place) = place(b"*|gzip", name, eq_ignore_case) {
                    let verdict = (place as u8) << 1 | u8::from(quality > 0);
                    self.gzip = self.gzip.max(verdict);
                }
                continue;
            }
            let known = b"application/openmetrics-text|text/plain|text/html";
            let (best, own_version): (_, &[u8]) = match place(known, name, eq_ignore_case) {
                Some(0) => (&mut self.openmetrics_quality, b"1.0.0"),
                Some(1) => (&mut self.text_quality, b"0.0.4"),
                Some(2) => (&mut self.page_quality, b""),
                _ => continue,
            };
            if version.is_none_or(|version| version == own_version) {
                *best = quality.max(*best);
            }
        }
    }

    /// Whether the live page is wanted where metrics are, too. It is there
    /// gzip'ed only.
    fn takes_page(&self) -> bool {
        let other_quality = self.openmetrics_quality.max(self.text_quality);
        self.page_quality > 0 && self.page_quality >= other_quality && self.gzip & 1 != 0
    }

    /// Whether the connection may go on (RFC 9112 section 9.3).
    const fn persists(&self) -> bool {
        !self.close && (self.is_1_1 || self.keep_alive)
    }

    /// What keeps the message from being understood, or a body that nothing
    /// here takes: the connection ends.
    fn framing_error(&self) -> Option<Status> {
        let has_coding = self.transfer_coding != TransferCoding::Absent;
        if self.is_1_1 && self.hosts == 0 {
            return Some(Status::BadRequest);
        }
        // Both framings, or chunked in HTTP/1.0: an attempt at smuggling
        // (RFC 9112 sections 6.1 and 11.2).
        if has_coding && (self.content_length.is_some() || !self.is_1_1) {
            return Some(Status::BadRequest);
        }
        match (self.transfer_coding, self.content_length) {
            (TransferCoding::Absent, None | Some(0)) => None,
            (TransferCoding::Endless, _) => Some(Status::BadRequest),
            (TransferCoding::Chunked, _) | (_, Some(_)) => Some(Status::ContentTooLarge),
        }
    }

    /// The request a well-framed head makes.
    fn request(&self) -> Request {
        let is_openmetrics =
            self.openmetrics_quality > 0 && self.openmetrics_quality >= self.text_quality;
        let format = if is_openmetrics {
            Format::OpenMetrics
        } else {
            Format::Text
        };
        match (self.resource, self.method_allowed) {
            // `OPTIONS *` and `CONNECT host:port` have targets of their own.
            _ if self.odd_target && !self.method_allowed => {
                Request::Error(Status::MethodNotAllowed)
            }
            _ if self.odd_target => Request::Error(Status::BadRequest),
            (Resource::Unknown, _) => Request::Error(Status::NotFound),
            (_, false) => Request::Error(Status::MethodNotAllowed),
            (Resource::Root, true) if self.takes_page() => Request::Page,
            (Resource::Root | Resource::Metrics, true) => Request::Metrics(format),
            (Resource::Healthz, true) => Request::Healthz,
            (Resource::Blocked | Resource::Blocks, true) => self.list_from(0),
        }
    }

    fn list_from(&self, cursor: u32) -> Request {
        Request::Blocked {
            is_detailed: self.resource == Resource::Blocks,
            cursor,
        }
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && has_only(bytes, b"!#$%&'*+-.^_`|~")
}

/// Letters, digits and these signs.
#[inline(never)]
fn has_only(bytes: &[u8], signs: &[u8]) -> bool {
    let is_one = |byte: &u8| byte.is_ascii_alphanumeric() || has_byte(signs, *byte);
    bytes.iter().all(is_one)
}

/// A host, perhaps empty, with or without a port (RFC 3986 sections 3.2.2 and
/// 3.2.3); no userinfo, which RFC 9110 section 4.2.4 calls an error.
fn is_host(value: &[u8]) -> bool {
    let colon = value.iter().rposition(|byte| *byte == b':');
    let colon = colon.filter(|_| !value.ends_with(b"]"));
    let (host, port) = value
        .split_at_checked(colon.unwrap_or(value.len()))
        .unwrap_or_default();
    let port = port.strip_prefix(b":").unwrap_or_default();
    let (name, signs): (_, &[u8]) = match host {
        [b'[', inner @ .., b']'] => (inner, b"-._~!$&'()*+,;=%:"),
        name => (name, b"-._~!$&'()*+,;=%"),
    };
    has_only(name, signs) && port.iter().all(u8::is_ascii_digit)
}

/// The minor version of HTTP/1.x (RFC 9112 section 2.3).
fn parse_version(version: &[u8]) -> Result<u8, Status> {
    match version.strip_prefix(b"HTTP/") {
        Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() => {
            if *major == b'1' {
                Ok(minor.wrapping_sub(b'0'))
            } else {
                Err(Status::VersionNotSupported)
            }
        }
        _ => Err(Status::BadRequest),
    }
}

/// The path of an origin-form or absolute-form target (RFC 9112 section 3.2),
/// still with its query.
fn path_of(target: &[u8]) -> Option<&[u8]> {
    if target.first() == Some(&b'/') {
        return Some(target);
    }
    let (scheme, rest) = split_once(target, b':');
    place(b"http|https", scheme, eq_ignore_case)?;
    let rest = rest.strip_prefix(b"//")?;
    let authority = before(before(before(rest, b'/'), b'?'), b'#');
    let path = rest.get(authority.len()..)?;
    if authority.is_empty() || !is_host(authority) {
        return None;
    }
    match path {
        [b'/', ..] => Some(path),
        // RFC 9110 section 4.2.3: an empty path is "/".
        _ => Some(b"/"),
    }
}

#[inline(never)]
fn resource_of(path: &[u8]) -> Resource {
    let known = b"/|/metrics|/healthz|/blocked|/blocks";
    match place(known, before(path, b'?'), |one, other| one == other) {
        Some(0) => Resource::Root,
        Some(1) => Resource::Metrics,
        Some(2) => Resource::Healthz,
        Some(3) => Resource::Blocked,
        Some(4) => Resource::Blocks,
        _ => Resource::Unknown,
    }
}

/// One element of Accept or Accept-Encoding: its name, its quality, and the
/// version it asks for.
fn parse_element(element: &[u8]) -> (&[u8], u32, Option<&[u8]>) {
    let mut parts = split(element, b';').map(trim);
    let element = parts.next().unwrap_or_default();
    let (mut quality, mut version) = (1_000, None);
    for part in parts {
        let (name, value) = split_once(part, b'=');
        let value = trim(value);
        if eq_ignore_case(name, b"q") {
            quality = parse_quality(value).unwrap_or(0);
        } else if eq_ignore_case(name, b"version") {
            version = Some(unquoted(value));
        }
    }
    (element, quality, version)
}

fn unquoted(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

/// A weight in thousandths: 0 to 1 with at most three decimals (RFC 9110
/// section 12.4.2).
fn parse_quality(value: &[u8]) -> Option<u32> {
    let (whole, decimals) = match value {
        [whole] => (whole, [].as_slice()),
        [whole, b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    let mut quality = u32::from(whole.checked_sub(b'0').filter(|whole| *whole <= 1)?);
    for place in 0..3 {
        let digit = decimals.get(place).copied().unwrap_or(b'0');
        let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
        quality = quality * 10 + u32::from(digit);
    }
    (quality <= 1_000).then_some(quality)
}

/// Where an exchange stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No client here.
    Free,
    /// A request is coming, or the first one is awaited.
    Receiving,
    /// The caller has a request to answer.
    Answering,
    /// Bytes of an answer are to be sent.
    Sending,
    /// A part of a long answer was sent, the caller has the next.
    NextPart,
    /// Kept alive, waits for another request.
    Idle,
    /// All is sent and our side shut down; the client is to close first.
    Lingering,
    /// To be closed.
    Finished,
}

/// One client and what it asks. All zero bytes is a free place.
#[repr(C)]
pub struct Exchange {
    state: State,
    /// `None` in a place that was never taken.
    descriptor: Option<Descriptor>,
    peer: IpAddr,
    /// When the client came, the request began, or the rest began.
    since: Option<Instant>,
    /// The wall clock for Date, in seconds since 1970; 0 where unknown.
    unix_seconds: u64,
    head: Head,
    /// Bytes in `request`.
    length: usize,
    /// Bytes of `request` that were looked at.
    scanned: usize,
    /// Where the line that is being read begins.
    line_start: usize,
    /// The client will send no more.
    input_ended: bool,
    /// The answer is the last one.
    close_after: bool,
    /// The client may still be sending: a plain close could reset it.
    linger_after: bool,
    shutdown_due: bool,
    status: Status,
    status_due: bool,
    next_part: Option<u32>,
    /// Bytes of input that may still be read away while lingering.
    linger_bytes: usize,
    /// Where in `response` the bytes begin that are to be sent.
    send_from: usize,
    send_to: usize,
    request: [u8; HTTP_REQUEST],
    /// `HEAD_ROOM` bytes, at whose end the head is set, and the body.
    response: Text<HTTP_RESPONSE>,
}

impl Exchange {
    const fn new() -> Self {
        Self {
            state: State::Free,
            descriptor: None,
            peer: UNSPECIFIED,
            since: None,
            unix_seconds: 0,
            head: Head::new(),
            length: 0,
            scanned: 0,
            line_start: 0,
            input_ended: false,
            close_after: false,
            linger_after: false,
            shutdown_due: false,
            status: Status::Ok,
            status_due: false,
            next_part: None,
            linger_bytes: 0,
            send_from: 0,
            send_to: 0,
            request: [0; HTTP_REQUEST],
            response: Text::new(),
        }
    }

    /// A new client in this place. The buffers stay as they are: clearing them
    /// would touch their pages.
    fn open(&mut self, descriptor: Descriptor, peer: IpAddr, now: Instant) {
        self.state = State::Receiving;
        self.descriptor = Some(descriptor);
        self.peer = peer;
        self.since = Some(now);
        self.length = 0;
        self.input_ended = false;
        self.close_after = false;
        self.linger_after = false;
        self.shutdown_due = false;
        self.status_due = false;
        self.next_part = None;
        self.send_from = 0;
        self.send_to = 0;
        self.begin_head();
    }

    #[inline(never)]
    fn begin_head(&mut self) {
        self.head = Head::new();
        self.scanned = 0;
        self.line_start = 0;
    }

    /// The client's socket.
    pub fn descriptor(&self) -> Option<Descriptor> {
        self.descriptor
    }

    /// The client's address.
    pub fn peer(&self) -> IpAddr {
        self.peer
    }

    /// The value of the request's Host; empty where there is none.
    pub fn host(&self) -> &[u8] {
        self.head.host.as_bytes()
    }

    /// What poll(2) shall wait for. A place with work left that needs no input
    /// waits for room to write, which is there at once or with the next byte
    /// that the client takes.
    pub fn interest(&self) -> Interest {
        let (readable, writable) = match self.state {
            State::Receiving => {
                let has_room = self.length < HTTP_REQUEST;
                (!self.input_ended && has_room, self.scanned < self.length)
            }
            State::Idle | State::Lingering => (true, false),
            State::Sending | State::NextPart => (false, true),
            State::Free | State::Answering | State::Finished => (false, false),
        };
        Interest {
            readable,
            writable,
            ..Interest::read(self.descriptor)
        }
    }

    /// Whether it is to be closed: `Server::next_to_close` will say so.
    pub fn is_finished(&self) -> bool {
        self.state == State::Finished
    }

    /// The socket failed: nothing more can be said.
    pub fn fail(&mut self) {
        self.state = State::Finished;
    }

    /// Where received bytes go; never empty while `interest` is readable.
    pub fn room(&mut self) -> &mut [u8] {
        self.request.get_mut(self.length..).unwrap_or_default()
    }

    /// `count` bytes were received into `room`; 0 changes nothing, the end is
    /// `end_of_input`.
    pub fn received(&mut self, count: usize, now: Instant) {
        if self.state == State::Lingering {
            return self.linger_on(count);
        }
        self.length = self.length.saturating_add(count).min(HTTP_REQUEST);
        if self.state == State::Idle && count > 0 {
            self.state = State::Receiving;
            self.since = Some(now);
        }
    }

    fn linger_on(&mut self, count: usize) {
        self.linger_bytes = self.linger_bytes.saturating_sub(count);
        if self.linger_bytes == 0 {
            self.state = State::Finished;
        }
    }

    /// The client shut down its side (recv(2) returned 0). What it asked before
    /// is still answered.
    pub fn end_of_input(&mut self) {
        self.input_ended = true;
        let has_work = match self.state {
            State::Receiving => self.scanned < self.length,
            State::Answering | State::Sending | State::NextPart => true,
            State::Free | State::Idle | State::Lingering | State::Finished => false,
        };
        if !has_work {
            self.state = State::Finished;
        }
    }

    /// The next request to answer, if one is complete and nothing is left to
    /// send. `unix_seconds` is the wall clock for Date, 0 where it is unknown.
    #[inline(never)]
    pub fn next_request(&mut self, unix_seconds: u64) -> Option<Request> {
        self.unix_seconds = unix_seconds;
        match (self.state, self.next_part) {
            (State::Receiving, _) => {}
            (State::NextPart, Some(cursor)) => return Some(self.head.list_from(cursor)),
            _ => return None,
        }
        match self.read_head() {
            Ok(false) if self.input_ended => self.state = State::Finished,
            Ok(false) => {}
            Ok(true) => return Some(self.begin_answer()),
            Err(status) => return Some(self.reject(status)),
        }
        None
    }

    /// Looks at the bytes that came since the last time. True: the head is
    /// complete and ends at `scanned`.
    fn read_head(&mut self) -> Result<bool, Status> {
        let new = self.request.get(self.scanned..self.length);
        for byte in new.unwrap_or_default() {
            self.scanned += 1;
            if !self.head.admits(*byte) {
                return Err(Status::BadRequest);
            }
            if *byte != b'\n' {
                continue;
            }
            let line = self.request.get(self.line_start..self.scanned);
            let line = line.and_then(|line| line.strip_suffix(b"\r\n"));
            self.line_start = self.scanned;
            if self.head.take_line(line.unwrap_or_default())? {
                return Ok(true);
            }
        }
        match self.length < HTTP_REQUEST {
            true => Ok(false),
            false if self.head.started => Err(Status::HeadersTooLarge),
            false => Err(Status::UriTooLong),
        }
    }

    /// A head is complete: what it asks, answered already if that is an error.
    fn begin_answer(&mut self) -> Request {
        if let Some(status) = self.head.framing_error() {
            return self.reject(status);
        }
        self.consume(self.scanned);
        self.close_after = !self.head.persists();
        self.state = State::Answering;
        let request = self.head.request();
        if let Request::Error(status) = request {
            self.refuse(status);
        }
        request
    }

    /// Answers what can't be understood and ends the connection.
    #[inline(never)]
    fn reject(&mut self, status: Status) -> Request {
        self.close_after = true;
        self.linger_after = true;
        self.length = 0;
        self.refuse(status);
        Request::Error(status)
    }

    /// Drops the first `count` bytes of input.
    fn consume(&mut self, count: usize) {
        let count = count.min(self.length);
        if let Some(input) = self.request.get_mut(..self.length)
            && count < input.len()
        {
            input.copy_within(count.., 0);
        }
        self.length -= count;
    }

    /// Answers with an error and a line of text that names it.
    pub fn refuse(&mut self, status: Status) {
        self.respond(status, ContentType::Plain, &[status.words(), b"\n"]);
    }

    /// Answers with a body of at most `BODY_ROOM` bytes; a longer one becomes
    /// status 500 rather than a part that looks whole.
    pub fn respond(&mut self, status: Status, content_type: ContentType, body: &[&[u8]]) {
        self.begin_body();
        for part in body {
            self.response.put(part);
        }
        self.next_part = None;
        if self.response.is_truncated() {
            self.begin_body();
            self.answer(Status::InternalError, ContentType::Plain, b"", true);
        } else {
            self.answer(status, content_type, b"", true);
        }
    }

    /// Answers `Request::Blocked` with the next part of a list. `write` returns
    /// where the list goes on, or `None` at its end; it must write something
    /// before it may go on. The end of the connection ends a list of several
    /// parts: its length cannot be known before (RFC 9112 section 6.3). `field`
    /// is a line more of the head, behind the end of another, or nothing.
    pub fn respond_part(&mut self, field: &[u8], write: impl FnOnce(&mut TextView) -> Option<u32>) {
        let is_first = self.next_part.is_none();
        let next = write(self.begin_body());
        let has_body = self.response.as_bytes().len() > HEAD_ROOM;
        self.next_part = next.filter(|_| has_body && !self.head.is_head);
        if self.response.is_truncated() {
            // A cut list could not be distinguished from a whole one.
            return self.fail();
        }
        if is_first {
            self.close_after |= next.is_some();
            self.answer(Status::Ok, ContentType::Plain, field, next.is_none());
        } else {
            self.send_answer(b"");
        }
    }

    /// The empty body; before it there is room for the head.
    #[inline(never)]
    fn begin_body(&mut self) -> &mut TextView {
        self.response.clear_behind(HEAD_ROOM);
        &mut self.response
    }

    /// Sends the body, all of it or the first part, with a head. Each line of
    /// that has its end before the next one.
    #[inline(never)]
    fn answer(&mut self, status: Status, content_type: ContentType, field: &[u8], is_whole: bool) {
        self.status = status;
        self.status_due = true;
        let mut head: Text<HEAD_ROOM> = Text::from_bytes(b"HTTP/1.1 ");
        head.put(status.words());
        write_date(&mut head, self.unix_seconds);
        if status == Status::MethodNotAllowed {
            head.put(b"\r\nAllow: GET, HEAD");
        }
        head.put(if self.close_after {
            b"\r\nConnection: close"
        } else if !self.head.is_1_1 {
            b"\r\nConnection: keep-alive"
        } else {
            b""
        });
        head.put(b"\r\nContent-Type: ");
        head.put(content_type.value().as_bytes());
        // What decided it (RFC 9110 section 12.5.5).
        head.put(match self.head.resource {
            Resource::Root => b"\r\nVary: Accept, Accept-Encoding",
            Resource::Metrics => b"\r\nVary: Accept",
            Resource::Unknown | Resource::Healthz | Resource::Blocked | Resource::Blocks => b"",
        });
        head.put(field);
        if is_whole {
            let length = self.response.as_bytes().len().saturating_sub(HEAD_ROOM);
            head.put(b"\r\nContent-Length: ");
            head.put_decimal(length as u64);
        }
        head.put(b"\r\n\r\n");
        self.send_answer(head.as_bytes());
    }

    /// Sets `head` right before the body that stands in `response`.
    fn send_answer(&mut self, head: &[u8]) {
        self.send_from = HEAD_ROOM.saturating_sub(head.len());
        self.response.overwrite(self.send_from, head);
        self.send_to = if self.head.is_head {
            HEAD_ROOM
        } else {
            self.response.as_bytes().len()
        };
        self.state = State::Sending;
    }

    /// The status of an answer that was begun, once: to be counted. Ask after
    /// each `next_request` and `respond`, and before each send: 408 comes from
    /// `Server::next_to_close`.
    pub fn take_status(&mut self) -> Option<Status> {
        mem::take(&mut self.status_due).then_some(self.status)
    }

    /// Bytes to send; empty where there are none.
    pub fn to_send(&self) -> &[u8] {
        let bytes = self.response.as_bytes().get(self.send_from..self.send_to);
        bytes
            .filter(|_| self.state == State::Sending)
            .unwrap_or_default()
    }

    /// Whether the connection ends behind what is to be sent.
    pub fn is_last_answer(&self) -> bool {
        self.close_after && self.next_part.is_none()
    }

    /// `count` bytes of `to_send` were sent.
    pub fn sent(&mut self, count: usize, now: Instant) {
        if self.state != State::Sending {
            return;
        }
        self.send_from = self.send_from.saturating_add(count);
        if self.send_from >= self.send_to {
            self.end_answer(now);
        }
    }

    fn end_answer(&mut self, now: Instant) {
        if self.next_part.is_some() {
            self.state = State::NextPart;
            return;
        }
        if !self.close_after {
            return self.next_head(now);
        }
        self.shutdown_due = true;
        // A request behind the last one will not be read, and unread input
        // turns a close into a reset.
        self.state = State::Finished;
        if self.linger_after || self.length > 0 {
            self.linger(now);
        }
    }

    /// A close would drop what of the answer is on its way if the client still
    /// sent anything (net/ipv4/tcp.c, __tcp_close): instead what it sends is
    /// read away, until it closes or `HTTP_LINGER` passed.
    #[inline(never)]
    pub fn linger(&mut self, now: Instant) {
        if self.state == State::Finished && !self.input_ended {
            self.state = State::Lingering;
            self.since = Some(now);
            self.length = 0;
            self.linger_bytes = HTTP_LINGER_BYTES;
        }
    }

    /// After an answer: on to the next request, which may have come already.
    fn next_head(&mut self, now: Instant) {
        self.since = Some(now);
        self.begin_head();
        self.state = match (self.length, self.input_ended) {
            (1.., _) => State::Receiving,
            (0, true) => State::Finished,
            (0, false) => State::Idle,
        };
    }

    /// Whether shutdown(2) of our side is due, once: the last answer is sent.
    /// Where the client takes it slowly, `linger` is called next.
    pub fn take_shutdown(&mut self) -> bool {
        mem::take(&mut self.shutdown_due)
    }

    /// When the exchange, as far as it has come, times out.
    #[inline(never)]
    fn deadline(&self) -> Option<Instant> {
        let timeout = match self.state {
            State::Free => return None,
            State::Finished => Duration::ZERO,
            State::Receiving => HTTP_HEADER_DEADLINE,
            State::Answering | State::Sending | State::NextPart => HTTP_EXCHANGE_DEADLINE,
            State::Idle => HTTP_KEEP_ALIVE,
            State::Lingering => HTTP_LINGER,
        };
        self.since.map(|since| since.after(timeout))
    }

    /// The deadline passed: a request that had begun is answered with 408, all
    /// else ends. True: close it.
    fn expire(&mut self, unix_seconds: u64) -> bool {
        if self.state != State::Receiving || self.length == 0 || self.input_ended {
            return true;
        }
        self.unix_seconds = unix_seconds;
        self.reject(Status::RequestTimeout);
        false
    }
}

/// `Date: Mon, 01 Nov 2021 21:11:53 GMT` (RFC 9110 section 5.6.7) behind the end of
/// another line; nothing where the clock stands at 0.
fn write_date(out: &mut TextView, unix_seconds: u64) {
    const DAYS: &[u8; 21] = b"ThuFriSatSunMonTueWed";
    const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
    if unix_seconds == 0 {
        return;
    }
    let calendar = Calendar::at(unix_seconds as i64);
    let name = |names: &'static [u8], index: u64| {
        let mut names = names.chunks_exact(3);
        names.nth(index as usize).unwrap_or_default()
    };
    out.put(b"\r\nDate: ");
    out.put(name(DAYS, unix_seconds / 86_400 % 7));
    out.put(b", ");
    let Date { year, month, day } = calendar.date();
    out.put_decimal_padded(day, 2);
    out.put_byte(b' ');
    out.put(name(MONTHS, month - 1));
    out.put_byte(b' ');
    out.put_decimal_padded(year, 4);
    calendar.write_time(out);
    out.put(b" GMT");
}

/// Places for `CLIENTS` clients; all zero bytes when new.
#[repr(C)]
pub struct Server<const CLIENTS: usize> {
    /// Places ever used: those behind were never touched.
    used: usize,
    exchanges: [Exchange; CLIENTS],
}

impl<const CLIENTS: usize> Server<CLIENTS> {
    /// No clients.
    pub const fn new() -> Self {
        Self {
            used: 0,
            exchanges: [const { Exchange::new() }; CLIENTS],
        }
    }

    /// Takes a new client in. Where all places are taken the one that waited
    /// longest, unfinished or idle, is evicted: close it.
    pub fn accept(
        &mut self,
        descriptor: Descriptor,
        peer: IpAddr,
        now: Instant,
    ) -> Option<Descriptor> {
        let place = self.place();
        self.used = self.used.max(place + 1);
        let place = self.exchanges.get_mut(place)?;
        let evicted = place.descriptor.filter(|_| place.state != State::Free);
        place.open(descriptor, peer, now);
        evicted
    }

    /// The place for a new client: the first free one, so that few pages are ever
    /// touched, else that of a client that is finished or waited longest.
    fn place(&self) -> usize {
        let mut used = self.exchanges.iter().take(self.used);
        match used.position(|exchange| exchange.state == State::Free) {
            Some(free) => free,
            None if self.used < CLIENTS => self.used,
            None => self.oldest(),
        }
    }

    /// That of the client that is finished or waited longest.
    #[inline(never)]
    fn oldest(&self) -> usize {
        let (mut place, mut oldest) = (0, u64::MAX);
        for (at, exchange) in self.exchanges.iter().take(self.used).enumerate() {
            let since = match exchange.state {
                State::Free => continue,
                State::Finished => order(None),
                _ => order(exchange.since),
            };
            if since < oldest {
                (place, oldest) = (at, since);
            }
        }
        place
    }

    /// Evicts the client that waited longest, unfinished or idle: close it.
    pub fn evict(&mut self) -> Option<Descriptor> {
        let place = self.oldest();
        let oldest = self.exchanges.get_mut(place)?;
        let state = mem::replace(&mut oldest.state, State::Free);
        oldest.descriptor.filter(|_| state != State::Free)
    }

    /// Clients now.
    pub fn len(&self) -> usize {
        self.open().count()
    }

    fn open(&self) -> impl Iterator<Item = &Exchange> {
        let used = self.exchanges.iter().take(self.used);
        used.filter(|exchange| exchange.state != State::Free)
    }

    /// What poll(2) shall wait for.
    pub fn interests(&self) -> impl Iterator<Item = Interest> {
        self.open().map(Exchange::interest)
    }

    /// All clients, in an order that only `accept` and `next_to_close` change.
    pub fn exchanges(&mut self) -> impl Iterator<Item = &mut Exchange> {
        let used = self.exchanges.iter_mut().take(self.used);
        used.filter(|exchange| exchange.state != State::Free)
    }

    /// The client with this socket.
    pub fn find(&mut self, descriptor: Option<Descriptor>) -> Option<&mut Exchange> {
        self.exchanges().find(|e| e.descriptor == descriptor)
    }

    /// When `next_to_close` has something to do; `None` without clients.
    pub fn deadline(&self) -> Option<Instant> {
        let deadlines = self.open().map(Exchange::deadline);
        deadlines.fold(None, nearest)
    }

    /// The next client that is finished or out of time: close it. Its place is
    /// free already. Call until `None`; one that is to be sent 408 first is
    /// not among them and waits to be written to.
    pub fn next_to_close(&mut self, now: Instant, unix_seconds: u64) -> Option<Descriptor> {
        let late = |exchange: &&mut Exchange| now.reaches(exchange.deadline());
        let mut expired = self.exchanges().filter(late);
        let exchange = expired.find_map(|e| e.expire(unix_seconds).then_some(e))?;
        exchange.state = State::Free;
        exchange.descriptor
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::collections::BTreeMap;
    use std::format;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::time::Duration;
    use End::*;

    /// 2021-11-01 21:11:53 UTC.
    const WALL: u64 = 1_635_801_113;
    const START: Instant = Instant::from_secs(1_000);
    const PEER: IpAddr = UNSPECIFIED;

    fn at(seconds: u64) -> Instant {
        START.after(Duration::from_secs(seconds))
    }

    fn server<const N: usize>() -> Box<Server<N>> {
        let mut server = Box::new(Server::<N>::new());
        assert_eq!(server.deadline(), None);
        assert!(server.exchanges().next().is_none());
        server
    }

    /// What the list at /blocked holds in these tests.
    struct FakeList {
        entries: u32,
        line: &'static [u8],
        a_part: u32,
    }

    const SHORT_LIST: FakeList = FakeList {
        entries: 2,
        line: b"192.0.2.1\n",
        a_part: 100,
    };

    fn answer(exchange: &mut Exchange, request: Request, list: &FakeList) {
        match request {
            Request::Metrics(format @ Format::Text) => {
                exchange.respond(Status::Ok, ContentType::Metrics(format), &[b"text 1\n"]);
            }
            Request::Metrics(format @ Format::OpenMetrics) => {
                exchange.respond(Status::Ok, ContentType::Metrics(format), &[b"# EOF\n"]);
            }
            Request::Page => exchange.respond(Status::Ok, ContentType::Page, &[b"packed"]),
            Request::Healthz => {
                exchange.respond(Status::ServiceUnavailable, ContentType::Plain, &[b"ill\n"]);
            }
            Request::Blocked { cursor, .. } => exchange.respond_part(b"", |body| {
                let end = (cursor + list.a_part).min(list.entries);
                (cursor..end).for_each(|_| body.put(list.line));
                (end < list.entries).then_some(end)
            }),
            Request::Error(_) => {}
        }
    }

    /// Answers and sends, `step` bytes at a time, until nothing is left to do.
    fn serve(exchange: &mut Exchange, output: &mut Vec<u8>, step: usize, list: &FakeList) {
        for _ in 0..2_000_000 {
            if let Some(request) = exchange.next_request(WALL) {
                answer(exchange, request, list);
            }
            let count = exchange.to_send().len().min(step);
            if count == 0 && !exchange.interest().writable {
                return;
            }
            output.extend_from_slice(&exchange.to_send()[..count]);
            exchange.sent(count, START);
        }
        panic!("the exchange does not come to rest");
    }

    fn feed(exchange: &mut Exchange, mut input: &[u8], output: &mut Vec<u8>, step: usize) {
        while !input.is_empty() && exchange.interest().readable {
            let room = exchange.room();
            let count = room.len().min(input.len());
            assert!(count > 0, "readable without room");
            room[..count].copy_from_slice(&input[..count]);
            exchange.received(count, START);
            input = &input[count..];
            serve(exchange, output, step, &SHORT_LIST);
        }
    }

    /// How a connection stands after its input.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum End {
        /// Waits for more of a request.
        Receiving,
        /// Waits for another request.
        Idle,
        /// Answered for the last time, the client is to close.
        Lingering,
        /// To be closed.
        Finished,
    }

    fn end_of(exchange: &Exchange) -> End {
        match exchange.state {
            State::Receiving => End::Receiving,
            State::Idle => End::Idle,
            State::Lingering => End::Lingering,
            State::Finished => End::Finished,
            state => panic!("at rest in {state:?}"),
        }
    }

    /// An answer and the end it leads to. What came after the last answer was
    /// sent can't be known before: a close may linger or not.
    fn outcome(chunks: &[&[u8]]) -> (Vec<u8>, End) {
        match converse(chunks) {
            (output, End::Lingering) => (output, End::Finished),
            other => other,
        }
    }

    fn socket(number: i32) -> Descriptor {
        Descriptor::new(number).unwrap()
    }

    fn converse(chunks: &[&[u8]]) -> (Vec<u8>, End) {
        let mut server = server::<1>();
        server.accept(socket(5), PEER, START);
        let exchange = server.find(Descriptor::new(5)).unwrap();
        let mut output = Vec::new();
        for chunk in chunks {
            feed(exchange, chunk, &mut output, usize::MAX);
        }
        (output, end_of(exchange))
    }

    #[derive(Debug)]
    struct Response {
        code: String,
        fields: BTreeMap<String, String>,
        body: Vec<u8>,
    }

    /// A strict client: takes answers apart or panics. `heads` says which of
    /// them answer HEAD.
    fn parse(mut bytes: &[u8], heads: &[bool]) -> Vec<Response> {
        let mut responses = vec![];
        while !bytes.is_empty() {
            let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            let head = std::str::from_utf8(&bytes[..end - 4]).unwrap();
            bytes = &bytes[end..];
            let mut lines = head.split("\r\n");
            let status = lines.next().unwrap();
            let (version, rest) = status.split_once(' ').unwrap();
            let (code, _) = rest.split_once(' ').unwrap();
            assert_eq!(version, "HTTP/1.1");
            assert!(Status::ALL.iter().any(|s| s.words() == rest.as_bytes()));
            let mut fields = BTreeMap::new();
            for line in lines {
                let (name, value) = line.split_once(": ").unwrap();
                let twice = fields.insert(name.to_lowercase(), value.into());
                assert!(twice.is_none(), "{name} is there twice");
            }
            assert_eq!(fields["date"], "Mon, 01 Nov 2021 21:11:53 GMT");
            let is_head = heads.get(responses.len()) == Some(&true);
            let (body, rest) = parse_body(bytes, &fields, is_head);
            bytes = rest;
            responses.push(Response {
                code: code.into(),
                fields,
                body,
            });
        }
        responses
    }

    fn parse_body<'a>(
        bytes: &'a [u8],
        fields: &BTreeMap<String, String>,
        is_head: bool,
    ) -> (Vec<u8>, &'a [u8]) {
        if is_head {
            return (vec![], bytes);
        }
        if let Some(length) = fields.get("content-length") {
            let (body, rest) = bytes.split_at(length.parse().unwrap());
            return (body.to_vec(), rest);
        }
        assert_eq!(fields["connection"], "close");
        (bytes.to_vec(), &[])
    }

    fn codes(bytes: &[u8], heads: &[bool]) -> Vec<String> {
        parse(bytes, heads).into_iter().map(|r| r.code).collect()
    }

    /// Requests, the codes of their answers, and how the connection stands
    /// then. A bar is the end of a line.
    #[rustfmt::skip]
    const CASES: &[(&str, &str, End)] = &[
        // Resources and targets, RFC 9112 section 3.2.
        ("GET /metrics HTTP/1.1|Host: a||", "200", Idle),
        ("GET / HTTP/1.1|Host: a||", "200", Idle),
        ("GET /healthz HTTP/1.1|Host: a||", "503", Idle),
        ("GET /blocked HTTP/1.1|Host: a||", "200", Idle),
        ("GET /metrics?name[]=up HTTP/1.1|Host: a||", "200", Idle),
        ("GET /? HTTP/1.1|Host: a||", "200", Idle),
        ("GET /metrics/ HTTP/1.1|Host: a||", "404", Idle),
        ("GET /../etc/passwd HTTP/1.1|Host: a||", "404", Idle),
        ("GET //metrics HTTP/1.1|Host: a||", "404", Idle),
        ("GET http://a/metrics HTTP/1.1|Host: a||", "200", Idle),
        ("GET HTTPS://[::1]:3021/healthz?x HTTP/1.1|Host: a||", "503", Idle),
        ("GET http://a HTTP/1.1|Host: a||", "200", Idle),
        ("GET http://a?x HTTP/1.1|Host: a||", "200", Idle),
        ("GET http:///metrics HTTP/1.1|Host: a||", "400", Idle),
        ("GET ftp://a/metrics HTTP/1.1|Host: a||", "400", Idle),
        ("GET http://u@a/metrics HTTP/1.1|Host: a||", "400", Idle),
        ("GET metrics HTTP/1.1|Host: a||", "400", Idle),
        ("GET * HTTP/1.1|Host: a||", "400", Idle),
        // Methods, RFC 9110 section 9.
        ("POST /metrics HTTP/1.1|Host: a||", "405", Idle),
        ("get /metrics HTTP/1.1|Host: a||", "405", Idle),
        ("OPTIONS * HTTP/1.1|Host: a||", "405", Idle),
        ("CONNECT a:443 HTTP/1.1|Host: a||", "405", Idle),
        ("POST /nothing HTTP/1.1|Host: a||", "404", Idle),
        ("G@T / HTTP/1.1|Host: a||", "400", Lingering),
        // Versions, RFC 9112 section 2.3.
        ("GET / HTTP/1.0||", "200", Finished),
        ("GET / HTTP/1.7|Host: a||", "200", Idle),
        ("GET / HTTP/2.0|Host: a||", "505", Lingering),
        ("GET / HTTP/0.9||", "505", Lingering),
        ("GET /|", "400", Lingering),
        ("GET / http/1.1|Host: a||", "400", Lingering),
        ("GET / HTTP/1.10|Host: a||", "400", Lingering),
        ("GET / HTTP/1.|Host: a||", "400", Lingering),
        ("PRI * HTTP/2.0||SM||", "505", Lingering),
        // The request line, RFC 9112 section 3.
        ("GET  / HTTP/1.1|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1 |Host: a||", "400", Lingering),
        (" GET / HTTP/1.1|Host: a||", "400", Lingering),
        ("GET\t/ HTTP/1.1|Host: a||", "400", Lingering),
        ("GET /\u{e9} HTTP/1.1|Host: a||", "400", Lingering),
        ("||GET / HTTP/1.1|Host: a||", "200", Idle),
        ("|", "", Receiving),
        ("", "", Receiving),
        ("GET / HTTP/1.1|Host: a|", "", Receiving),
        // Line ends and bytes, RFC 9112 section 2.2.
        ("GET / HTTP/1.1\nHost: a||", "400", Lingering),
        ("\nGET / HTTP/1.1|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|\n", "400", Lingering),
        ("GET / HTTP/1.1|A: b\rc|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1\r|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1|A: \0|Host: a||", "400", Lingering),
        ("GET /\0 HTTP/1.1|Host: a||", "400", Lingering),
        ("\x16\x03\x01\x02\0\x01\0\x01", "400", Lingering),
        // Fields, RFC 9112 section 5.
        ("GET / HTTP/1.1|A: \u{e9}\tb|Host: a||", "200", Idle),
        ("GET / HTTP/1.1|A:|Host: a||", "200", Idle),
        ("GET / HTTP/1.1|A: b| c|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1| A: b|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1|A : b|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1|: b|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1|A|Host: a||", "400", Lingering),
        // Host, RFC 9112 section 3.2.
        ("GET / HTTP/1.1||", "400", Lingering),
        ("GET / HTTP/1.1|Host:||", "200", Idle),
        ("GET / HTTP/1.1|hOST: [::1]:3021||", "200", Idle),
        ("GET / HTTP/1.1|Host: a|Host: a||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a b||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a/b||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a:80||", "200", Idle),
        ("GET / HTTP/1.1|Host: a:||", "200", Idle),
        ("GET / HTTP/1.1|Host: [::1]||", "200", Idle),
        ("GET / HTTP/1.1|Host: a:b||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a:1:2||", "400", Lingering),
        ("GET / HTTP/1.1|Host: [::1||", "400", Lingering),
        ("GET / HTTP/1.1|Host: u@a||", "400", Lingering),
        ("GET http://a/ HTTP/1.1||", "400", Lingering),
        // Persistence, RFC 9112 section 9.3.
        ("GET / HTTP/1.1|Host: a|Connection: close||", "200", Finished),
        ("GET / HTTP/1.1|Host: a|Connection: TE, Close||", "200", Finished),
        ("GET / HTTP/1.0|Connection: Keep-Alive||", "200", Idle),
        ("GET / HTTP/1.0|Connection: keep-alive, close||", "200", Finished),
        ("GET /x HTTP/1.0||", "404", Finished),
        // Pipelining, RFC 9112 section 9.3.2.
        ("GET / HTTP/1.1|Host: a||GET /x HTTP/1.1|Host: a||GET /healthz HTTP/1.1|Host: a||", "200 404 503", Idle),
        ("GET / HTTP/1.1|Host: a|Connection: close||GET /x HTTP/1.1|Host: a||", "200", Lingering),
        ("GET / HTTP/1.1|Host: a|||GET", "200", Receiving),
        // Bodies, RFC 9112 section 6.
        ("GET / HTTP/1.1|Host: a|Content-Length: 0||", "200", Idle),
        ("GET / HTTP/1.1|Host: a|Content-Length: 5||abc", "413", Lingering),
        ("POST / HTTP/1.1|Host: a|Content-Length: 5||GET /GET /x HTTP/1.1|Host: a||", "413", Lingering),
        ("GET / HTTP/1.1|Host: a|Content-Length: 3|Content-Length: 3, 3||abc", "413", Lingering),
        ("GET / HTTP/1.1|Host: a|Content-Length: 3|Content-Length: 4||abc", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|Content-Length: 3, 4||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|Content-Length: +3||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|Content-Length:||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|Content-Length: 18446744073709551616||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|Content-Length: 65537||", "413", Lingering),
        ("GET / HTTP/1.1|Host: a|Expect: 100-continue|Content-Length: 5||", "413", Lingering),
        ("GET / HTTP/1.1|Host: a|Transfer-Encoding: Chunked||0||GET /x HTTP/1.1|", "413", Lingering),
        ("GET / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Content-Length: 3||", "400", Lingering),
        ("GET / HTTP/1.0|Transfer-Encoding: chunked||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|Transfer-Encoding: gzip||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|Transfer-Encoding: chunked, gzip||", "400", Lingering),
        ("GET / HTTP/1.1|Host: a|Transfer-Encoding: gzip, chunked||", "413", Lingering),
        ("GET / HTTP/1.1|Host: a|Transfer-Encoding: chunked|Transfer-Encoding: chunked||", "400", Lingering),
    ];

    /// With ends of lines for bars.
    fn lines(text: &str) -> String {
        text.replace('|', "\r\n")
    }

    /// The answer to a request that is written so.
    fn answer_to(request: &str) -> Response {
        parse(&converse(&[lines(request).as_bytes()]).0, &[]).remove(0)
    }

    #[test]
    fn the_oldest_gives_way_when_asked() {
        let mut server = server::<4>();
        assert_eq!(server.evict(), None);
        for (number, second) in [(7, 2), (8, 1), (9, 3)] {
            assert_eq!(server.accept(socket(number), PEER, at(second)), None);
        }
        for number in [8, 7, 9] {
            assert_eq!(server.evict(), Descriptor::new(number));
            assert!(server.find(Descriptor::new(number)).is_none());
        }
        assert_eq!(server.evict(), None);
        assert_eq!(server.len(), 0);
    }

    #[test]
    fn requests_are_answered_as_the_rfcs_say() {
        for (request, expected, end) in CASES {
            let (output, actual_end) = converse(&[lines(request).as_bytes()]);
            assert_eq!(codes(&output, &[]).join(" "), *expected, "{request:?}");
            assert_eq!(actual_end, *end, "{request:?}");
        }
    }

    #[test]
    fn splits_change_nothing() {
        for (request, ..) in CASES {
            let input = lines(request);
            let input = input.as_bytes();
            let whole = outcome(&[input]);
            for split in 0..=input.len() {
                let (first, second) = input.split_at(split);
                assert_eq!(outcome(&[first, second]), whole, "{request:?} at {split}");
            }
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            assert_eq!(outcome(&bytes), whole, "{request:?} by bytes");
        }
    }

    /// Requests, and fields of their answers; empty for none.
    #[rustfmt::skip]
    const HEADS: &[(&str, &str, &str)] = &[
        ("GET / HTTP/1.1|Host: a||", "content-type", "text/plain; version=0.0.4; charset=utf-8"),
        ("GET / HTTP/1.1|Host: a||", "connection", ""),
        ("GET / HTTP/1.0||", "connection", "close"),
        ("GET / HTTP/1.0|Connection: keep-alive||", "connection", "keep-alive"),
        ("POST / HTTP/1.1|Host: a||", "allow", "GET, HEAD"),
        ("POST / HTTP/1.1|Host: a||", "content-type", "text/plain; charset=utf-8"),
        ("GET / HTTP/1.1||", "connection", "close"),
        ("GET /blocked HTTP/1.1|Host: a||", "content-length", "20"),
        ("GET /blocked HTTP/1.1|Host: a||", "content-type", "text/plain; charset=utf-8"),
    ];

    #[test]
    fn the_head_of_an_answer_has_what_the_client_needs() {
        for (request, name, expected) in HEADS {
            let answer = answer_to(request);
            let field = answer.fields.get(*name).map_or("", String::as_str);
            assert_eq!(field, *expected, "{request:?} {name}");
        }
        for (request, expected) in [
            ("GET / HTTP/1.1|Host: a||", "text 1\n"),
            ("GET / HTTP/1.1||", "400 Bad Request\n"),
            ("GET /blocked HTTP/1.1|Host: a||", "192.0.2.1\n192.0.2.1\n"),
        ] {
            assert_eq!(answer_to(request).body, expected.as_bytes());
        }
    }

    #[test]
    fn head_is_get_without_its_body() {
        for path in ["/metrics", "/healthz", "/blocked", "/x"] {
            let request = |method: &str| format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let get = parse(&converse(&[request("GET").as_bytes()]).0, &[]).remove(0);
            let two = request("HEAD").repeat(2);
            let heads = parse(&converse(&[two.as_bytes()]).0, &[true, true]);
            assert_eq!(heads.len(), 2);
            assert_eq!(heads[1].code, get.code);
            assert_eq!(heads[1].fields, get.fields);
        }
    }

    /// What Prometheus sends of two versions, and of the second with its format
    /// chosen.
    const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,\
         application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
         application/openmetrics-text;version=0.0.1;q=0.5,\
         text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    const PROMETHEUS_3_TEXT: &str = "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,\
         application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.4";

    /// Accept, and whether the answer is OpenMetrics. A bar starts another
    /// line of it.
    #[rustfmt::skip]
    const ACCEPT: &[(&str, bool)] = &[
        (PROMETHEUS_2, true),
        (PROMETHEUS_3, true),
        (PROMETHEUS_3_TEXT, false),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", false),
        ("*/*", false),
        ("", false),
        ("application/openmetrics-text", true),
        ("Application/OpenMetrics-Text ; Version=\"1.0.0\" ; charset=utf-8", true),
        ("application/openmetrics-text;version=0.0.1", false),
        ("application/openmetrics-text;q=0", false),
        ("application/openmetrics-text;q=0.000", false),
        ("application/openmetrics-text;q=0.001", true),
        ("application/openmetrics-text;q=2", false),
        ("application/openmetrics-text;q=1.001", false),
        ("application/openmetrics-text;q=", false),
        ("application/openmetrics-text;q=0.5, text/plain", false),
        ("application/openmetrics-text;q=0.5, text/plain;q=0.50", true),
        ("text/plain;version=0.0.4, application/openmetrics-text", true),
        ("application/openmetrics-text-not", false),
        (";;;,,,=;q", false),
        ("text/plain;q=0.4|application/openmetrics-text;q=0.5", true),
        ("text/plain;q=0.6|application/openmetrics-text;q=0.5", false),
        // The best of what names a format twice.
        ("text/plain;q=0.6, application/openmetrics-text;q=0.5, text/plain;q=0.4", false),
    ];

    #[test]
    fn accept_chooses_the_format() {
        for (accept, is_openmetrics) in ACCEPT {
            let accept = accept.replace('|', "|Accept: ");
            let answer = answer_to(&format!("GET / HTTP/1.1|Host: a|Accept: {accept}||"));
            let (expected, body): (_, &[u8]) = match is_openmetrics {
                true => (
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    b"# EOF\n",
                ),
                false => ("text/plain; version=0.0.4; charset=utf-8", b"text 1\n"),
            };
            assert_eq!(answer.fields["content-type"], expected, "{accept}");
            assert_eq!(answer.body, body, "{accept}");
        }
    }

    /// Fields of a request, and whether they ask for the live page at `/`.
    #[rustfmt::skip]
    const PAGE: &[(&str, bool)] = &[
        ("Accept: text/html|Accept-Encoding: gzip", true),
        // Browsers, over plain HTTP.
        ("Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8|\
            Accept-Encoding: gzip, deflate", true),
        ("ACCEPT: Text/HTML|accept-encoding: br|Accept-Encoding: GZip;q=0.1", true),
        ("Accept: text/plain;q=0.9, text/html;q=0.9|Accept-Encoding: *", true),
        ("Accept: text/html|Accept-Encoding: *;q=0, gzip", true),
        ("Accept: text/html|Accept-Encoding: gzip;q=1, *;q=0", true),
        ("Accept: text/html|Accept: */*|Accept-Encoding: gzip|Accept-Encoding: br", true),
        ("Accept: text/html|Accept-Encoding: gzip;q=0", false),
        ("Accept: text/html|Accept-Encoding: gzip;q=0.000, *", false),
        ("Accept: text/html|Accept-Encoding: *, gzip ; Q=0", false),
        ("Accept: text/html|Accept-Encoding: *;q=0", false),
        ("Accept: text/html|Accept-Encoding: gzip;q=2", false),
        ("Accept: text/html|Accept-Encoding: gzipped, identity", false),
        ("Accept: text/html|Accept-Encoding: ", false),
        ("Accept: text/html", false),
        ("Accept: text/html;q=0|Accept-Encoding: gzip", false),
        ("Accept: text/html;q=0.5, text/plain|Accept-Encoding: gzip", false),
        ("Accept: text/html;q=0.5, application/openmetrics-text|Accept-Encoding: gzip", false),
        // curl --compressed, and no browser.
        ("Accept: */*|Accept-Encoding: deflate, gzip, br, zstd", false),
        ("Accept: text/*|Accept-Encoding: gzip", false),
        ("Accept-Encoding: gzip", false),
        // Prometheus.
        ("Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;\
            q=0.3,*/*;q=0.2|Accept-Encoding: gzip", false),
    ];

    #[test]
    fn browsers_are_given_the_page() {
        for (fields, is_page) in PAGE {
            let at = |path, fields| answer_to(&format!("GET {path} HTTP/1.1|Host: a|{fields}||"));
            let answer = at("/?a", fields);
            assert_eq!(answer.body == b"packed", *is_page, "{fields}");
            assert_eq!(answer.fields["vary"], "Accept, Accept-Encoding");
            let coding = answer.fields.get("content-encoding");
            assert_eq!(coding.map(String::as_str), is_page.then_some("gzip"));
            let metrics = at("/metrics", fields);
            assert_eq!(metrics.fields["vary"], "Accept", "{fields}");
            assert!(!metrics.fields.contains_key("content-security-policy"));
        }
    }

    #[test]
    fn a_request_has_exactly_so_much_room() {
        let line = |length: usize| {
            let fixed = "GET / HTTP/1.1\r\n".len();
            format!("GET /{} HTTP/1.1\r\n", "x".repeat(length - fixed))
        };
        let field = |length: usize| format!("A: {}\r\n", "b".repeat(length - 5));
        let head = "GET / HTTP/1.1\r\nHost: a\r\n";
        let fits = format!("{head}{}\r\n", field(HTTP_REQUEST - head.len() - 2));
        assert_eq!(fits.len(), HTTP_REQUEST);
        let over = format!("{head}{}\r\n", field(HTTP_REQUEST - head.len() - 1));
        for (input, expected) in [
            (fits.clone(), "200"),
            (over, "431"),
            (line(HTTP_REQUEST), "431"),
            (line(HTTP_REQUEST + 1), "414"),
            ("x".repeat(3 * HTTP_REQUEST), "414"),
            ("\r\n".repeat(HTTP_REQUEST), "414"),
            (fits + "GET /x HTTP/1.1\r\n", "200"),
        ] {
            let whole = converse(&[input.as_bytes()]);
            assert_eq!(codes(&whole.0, &[])[0], expected);
            let parts: Vec<&[u8]> = input.as_bytes().chunks(1_000).collect();
            assert_eq!(converse(&parts).0, whole.0);
        }
    }

    #[test]
    fn a_long_list_comes_in_parts() {
        let list = FakeList {
            entries: 10_000,
            line: b"2001:db8:1111:2222::/64\n",
            a_part: 1_000,
        };
        let expected = list.line.repeat(10_000);
        for (request, is_head) in [
            ("GET /blocked HTTP/1.1|Host: a||", false),
            ("HEAD /blocked HTTP/1.1|Host: a||", true),
            ("GET /blocked HTTP/1.0|Connection: keep-alive||", false),
        ] {
            let request = lines(request);
            for step in [1, 1_000, usize::MAX] {
                let mut server = server::<1>();
                server.accept(socket(5), PEER, START);
                let exchange = server.find(Descriptor::new(5)).unwrap();
                exchange.room()[..request.len()].copy_from_slice(request.as_bytes());
                exchange.received(request.len(), START);
                let mut output = Vec::new();
                serve(exchange, &mut output, step, &list);
                let response = parse(&output, &[is_head]).remove(0);
                assert_eq!(
                    response.body,
                    if is_head { vec![] } else { expected.clone() }
                );
                assert_eq!(end_of(exchange), Finished);
                assert_eq!(exchange.take_status(), Some(Status::Ok));
                assert_eq!(exchange.take_status(), None);
            }
        }
    }

    /// What was to follow may be gone by the time of the next part.
    #[test]
    fn a_list_may_end_with_nothing() {
        for (version, is_detailed) in [("1.0", false), ("1.1", true)] {
            let mut server = server::<4>();
            let path = if is_detailed { "/blocks" } else { "/blocked" };
            let request = format!("GET {path} HTTP/{version}\r\nHost: a\r\n\r\n");
            let part = |cursor| {
                Some(Request::Blocked {
                    is_detailed,
                    cursor,
                })
            };
            let exchange = fed(&mut server, 5, request.as_bytes(), START);
            assert_eq!(exchange.next_request(WALL), part(0));
            exchange.respond_part(b"\r\nUndo: it", |body| {
                body.put(b"192.0.2.1\n");
                Some(7)
            });
            assert!(!exchange.is_last_answer(), "more follows");
            exchange.sent(exchange.to_send().len(), START);
            assert_eq!(exchange.next_request(WALL), part(7));
            exchange.respond_part(b"", |_| None);
            assert_eq!(exchange.to_send(), b"");
            exchange.sent(0, START);
            assert_eq!(end_of(exchange), End::Finished);
        }
    }

    #[test]
    fn only_an_answer_that_ends_the_connection_is_the_last() {
        for (fields, is_last) in [("", false), ("Connection: close\r\n", true)] {
            let mut server = server::<4>();
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            let exchange = fed(&mut server, 5, request.as_bytes(), START);
            let request = exchange.next_request(WALL).unwrap();
            answer(exchange, request, &SHORT_LIST);
            assert_eq!(exchange.is_last_answer(), is_last);
        }
    }

    #[test]
    fn a_refused_head_has_no_body() {
        let mut server = server::<4>();
        let exchange = fed(&mut server, 5, b"HEAD / HTTP/2.0\r\n\r\n", START);
        let response = send_all(exchange, START);
        assert!(response.starts_with(b"HTTP/1.1 505 ") && response.ends_with(b"\r\n\r\n"));
    }

    /// A close would reset them if they sent anything.
    #[test]
    fn slow_clients_are_waited_for_after_the_last_answer() {
        let request = b"GET / HTTP/1.0\r\n\r\n";
        let mut server = server::<4>();
        let exchange = fed(&mut server, 5, request, START);
        send_all(exchange, START);
        assert!(exchange.take_shutdown() && exchange.is_finished());
        exchange.linger(START);
        assert_eq!(end_of(exchange), End::Lingering);
        assert!(exchange.interest().readable);
        exchange.end_of_input();
        assert!(exchange.is_finished());
        // Who has ended sends nothing more.
        exchange.linger(START);
        assert!(exchange.is_finished());
    }

    #[test]
    fn a_body_that_does_not_fit_is_an_error_and_never_cut() {
        let mut server = server::<1>();
        server.accept(socket(5), PEER, START);
        let exchange = server.find(Descriptor::new(5)).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for (length, expected) in [(BODY_ROOM, "200"), (BODY_ROOM + 1, "500")] {
            exchange.room()[..request.len()].copy_from_slice(request);
            exchange.received(request.len(), START);
            assert!(exchange.next_request(WALL).is_some());
            let body = vec![b'x'; length];
            exchange.respond(Status::Ok, ContentType::Plain, &[&body]);
            assert_eq!(codes(exchange.to_send(), &[]), [expected]);
            let all = exchange.to_send().len();
            exchange.sent(all, START);
        }
    }

    fn fed<'a>(
        server: &'a mut Server<4>,
        number: i32,
        input: &[u8],
        now: Instant,
    ) -> &'a mut Exchange {
        if server.find(Descriptor::new(number)).is_none() {
            server.accept(socket(number), PEER, now);
        }
        let exchange = server.find(Descriptor::new(number)).unwrap();
        exchange.room()[..input.len()].copy_from_slice(input);
        exchange.received(input.len(), now);
        exchange
    }

    fn send_all(exchange: &mut Exchange, now: Instant) -> Vec<u8> {
        let mut output = vec![];
        while let Some(request) = exchange.next_request(WALL) {
            answer(exchange, request, &SHORT_LIST);
            output.extend_from_slice(exchange.to_send());
            exchange.sent(exchange.to_send().len(), now);
        }
        output.extend_from_slice(exchange.to_send());
        exchange.sent(exchange.to_send().len(), now);
        output
    }

    #[test]
    fn headers_have_five_seconds_however_slowly_they_drip() {
        let mut server = server::<4>();
        for second in 0..5 {
            fed(&mut server, 5, b"G", at(second)).next_request(WALL);
            assert_eq!(server.deadline(), Some(at(5)));
            assert_eq!(server.next_to_close(at(second), WALL), None);
        }
        assert_eq!(server.next_to_close(at(5), WALL), None);
        let exchange = server.find(Descriptor::new(5)).unwrap();
        assert!(exchange.interest().writable);
        assert_eq!(exchange.take_status(), Some(Status::RequestTimeout));
        assert_eq!(codes(&send_all(exchange, at(5)), &[]), ["408"]);
        assert!(exchange.take_shutdown() && !exchange.take_shutdown());
        assert_eq!(server.deadline(), Some(at(7)));
        assert_eq!(server.next_to_close(at(7), WALL), Descriptor::new(5));
        assert_eq!(server.len(), 0);
    }

    #[test]
    fn who_sends_nothing_is_sent_nothing() {
        let mut server = server::<4>();
        server.accept(socket(5), PEER, START);
        assert_eq!(server.next_to_close(at(4), WALL), None);
        assert_eq!(server.next_to_close(at(5), WALL), Descriptor::new(5));
        assert_eq!(server.next_to_close(at(5), WALL), None);
    }

    #[test]
    fn an_exchange_has_ten_seconds_and_a_kept_connection_75() {
        let mut server = server::<4>();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let exchange = fed(&mut server, 5, request, START);
        let request_of_5 = exchange.next_request(WALL).unwrap();
        answer(exchange, request_of_5, &SHORT_LIST);
        exchange.sent(10, at(9));
        send_all(fed(&mut server, 6, request, START), at(1));
        assert_eq!(server.deadline(), Some(at(10)));
        assert_eq!(server.next_to_close(at(10), WALL), Descriptor::new(5));
        assert_eq!(server.deadline(), Some(at(76)));
        // The next request has its own time.
        fed(&mut server, 6, b"GET", at(70));
        assert_eq!(server.deadline(), Some(at(75)));
        let exchange = fed(&mut server, 6, b" / HTTP/1.1\r\nHost: a\r\n\r\n", at(74));
        assert_eq!(codes(&send_all(exchange, at(74)), &[]), ["200"]);
        assert_eq!(server.deadline(), Some(at(149)));
        assert_eq!(server.next_to_close(at(149), WALL), Descriptor::new(6));
    }

    #[test]
    fn half_closed_clients_get_their_answers() {
        let mut server = server::<4>();
        let two = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n";
        let exchange = fed(&mut server, 5, two, START);
        exchange.end_of_input();
        assert!(!exchange.interest().readable && exchange.interest().writable);
        assert_eq!(codes(&send_all(exchange, START), &[]), ["200", "404"]);
        assert!(exchange.is_finished());
        // Nothing is left that could be answered.
        let exchange = fed(&mut server, 6, b"GET / HT", START);
        exchange.end_of_input();
        assert_eq!(exchange.next_request(WALL), None);
        assert!(exchange.is_finished());
        // An error needs no lingering once the client has ended.
        let exchange = fed(&mut server, 7, b"\0", START);
        exchange.end_of_input();
        assert_eq!(codes(&send_all(exchange, START), &[]), ["400"]);
        assert!(exchange.take_shutdown() && exchange.is_finished());
    }

    #[test]
    fn lingering_reads_away_a_bounded_rest() {
        let mut server = server::<4>();
        let exchange = fed(&mut server, 5, b"\0", START);
        send_all(exchange, START);
        assert!(exchange.take_shutdown());
        let mut rest = HTTP_LINGER_BYTES;
        while rest > 0 {
            assert!(exchange.interest().readable);
            let count = exchange.room().len().min(rest);
            exchange.received(count, START);
            rest -= count;
        }
        assert!(exchange.is_finished());
        // A client that closes ends it at once.
        let exchange = fed(&mut server, 6, b"\0", START);
        send_all(exchange, START);
        exchange.end_of_input();
        assert!(exchange.is_finished());
        assert_eq!(server.next_to_close(START, WALL), Descriptor::new(5));
        assert_eq!(server.next_to_close(START, WALL), Descriptor::new(6));
    }

    #[test]
    fn the_newest_client_is_never_refused() {
        let mut server = server::<4>();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for (number, second) in [(5, 0), (6, 1), (7, 2)] {
            assert_eq!(server.accept(socket(number), PEER, at(second)), None);
        }
        // 5 becomes idle last, so 6 is the one that waited longest, then 7.
        send_all(fed(&mut server, 5, request, at(0)), at(3));
        assert_eq!(server.accept(socket(8), PEER, at(4)), None);
        assert_eq!(server.accept(socket(9), PEER, at(5)), Descriptor::new(6));
        assert_eq!(server.accept(socket(10), PEER, at(6)), Descriptor::new(7));
        assert_eq!(server.accept(socket(11), PEER, at(7)), Descriptor::new(5));
        // Who is finished anyway goes first.
        server.find(Descriptor::new(10)).unwrap().fail();
        assert_eq!(server.accept(socket(12), PEER, at(8)), Descriptor::new(10));
        assert_eq!(server.len(), 4);
        // A place that was left behind in any state is like new.
        for number in 20..40 {
            let old = server.exchanges().map(|e| e.descriptor()).next().unwrap();
            fed(&mut server, old.unwrap().number(), b"\0GET", at(9)).next_request(WALL);
            server.accept(socket(number), PEER, at(9));
            let exchange = fed(&mut server, number, request, at(9));
            assert_eq!(codes(&send_all(exchange, at(9)), &[]), ["200"]);
        }
    }

    #[test]
    fn every_status_is_taken_once() {
        let mut server = server::<4>();
        let three = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\nX\n";
        let exchange = fed(&mut server, 5, three, START);
        let mut taken = vec![];
        while let Some(request) = exchange.next_request(WALL) {
            answer(exchange, request, &SHORT_LIST);
            taken.extend(exchange.take_status());
            assert_eq!(exchange.take_status(), None);
            exchange.sent(exchange.to_send().len(), START);
        }
        assert_eq!(taken, [Status::Ok, Status::NotFound, Status::BadRequest]);
    }

    #[test]
    fn dates_are_those_of_the_gregorian_calendar() {
        let written = |seconds| {
            let mut text: Text<64> = Text::new();
            write_date(&mut text, seconds);
            String::from_utf8(text.as_bytes().to_vec()).unwrap()
        };
        assert_eq!(written(0), "");
        for (seconds, expected) in [
            (1, "Thu, 01 Jan 1970 00:00:01"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00"),
            (1_704_067_199, "Sun, 31 Dec 2023 23:59:59"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00"),
        ] {
            assert_eq!(written(seconds), format!("\r\nDate: {expected} GMT"));
        }
    }

    /// Whatever head can come about fits before the body, with its length.
    #[test]
    fn the_longest_head_fits() {
        let mut server = server::<1>();
        server.accept(socket(5), PEER, START);
        let exchange = server.find(Descriptor::new(5)).unwrap();
        exchange.unix_seconds = u64::from(u32::MAX);
        exchange.head.resource = Resource::Root;
        // As much as the longest field that a list adds to its head.
        let field = [b'a'; 320];
        for status in Status::ALL {
            for content_type in [
                ContentType::Plain,
                ContentType::Metrics(Format::Text),
                ContentType::Metrics(Format::OpenMetrics),
                ContentType::Page,
            ] {
                exchange.begin_body();
                exchange.answer(status, content_type, &field, true);
                let head = exchange.to_send();
                assert!(head.ends_with(b"\r\nContent-Length: 0\r\n\r\n"));
                assert!(head.len() + "3276".len() <= HEAD_ROOM);
            }
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as usize % limit
        }
    }

    const METHODS: std::ops::Range<usize> = 0..3;
    const TARGETS: std::ops::Range<usize> = 3..8;
    const VERSIONS: std::ops::Range<usize> = 8..11;
    const FIELDS: std::ops::Range<usize> = 11..20;

    /// Words that requests are made of, so that random soup gets deep.
    #[rustfmt::skip]
    const SOUP: &[&[u8]] = &[
        b"GET ", b"HEAD ", b"POST ",
        b"/metrics", b"/blocked", b"/x?y", b"/", b"http://a/healthz",
        b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/1.1\r\nConnection: keep-alive\r\n",
        b"Content-Length: 7\r\n", b"Content-Length: 99999999999\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
        b"Connection: close\r\n", b"Connection: keep-alive\r\n",
        b"Accept: application/openmetrics-text;q=0.3\r\n", b"Expect: 100-continue\r\n",
        b"Content-Length: 0\r\n",
        b"Host: a\r\n", b"\r\n", b"\r\n\r\n", b": ", b"\n", b"\r", b"\0", b" ", b"\xff",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];

    fn pick(random: &mut Random, from: std::ops::Range<usize>) -> &'static [u8] {
        SOUP[from.start + random.below(from.len())]
    }

    /// Whole requests of random parts, raw pieces between them, wrong bytes in
    /// some.
    fn soup(random: &mut Random) -> Vec<u8> {
        let mut input = vec![];
        for _ in 0..random.below(6) {
            if random.below(8) == 0 {
                let length = random.below(9_000);
                input.extend(std::iter::repeat_n(b'a', length));
            }
            if random.below(5) == 0 {
                input.extend_from_slice(pick(random, 0..SOUP.len()));
                continue;
            }
            input.extend_from_slice(pick(random, METHODS));
            input.extend_from_slice(pick(random, TARGETS));
            input.extend_from_slice(pick(random, VERSIONS));
            input.extend_from_slice(b"Host: a\r\n");
            for _ in 0..random.below(3) {
                input.extend_from_slice(pick(random, FIELDS));
            }
            input.extend_from_slice(b"\r\n");
        }
        if random.below(3) == 0 && !input.is_empty() {
            let place = random.below(input.len());
            input[place] = random.below(256) as u8;
        }
        input
    }

    /// The methods of the answered requests, by an oracle without splits:
    /// needed to find where answers end.
    fn heads_of(input: &[u8]) -> Vec<bool> {
        let mut server = server::<1>();
        server.accept(socket(5), PEER, START);
        let exchange = server.find(Descriptor::new(5)).unwrap();
        let (mut heads, mut rest) = (vec![], input);
        loop {
            while let Some(request) = exchange.next_request(WALL) {
                if !matches!(request, Request::Blocked { cursor: 1.., .. }) {
                    heads.push(exchange.head.is_head);
                }
                answer(exchange, request, &SHORT_LIST);
                exchange.sent(exchange.to_send().len(), START);
            }
            let count = exchange.room().len().min(rest.len());
            if count == 0 || !exchange.interest().readable {
                return heads;
            }
            exchange.room()[..count].copy_from_slice(&rest[..count]);
            exchange.received(count, START);
            rest = &rest[count..];
        }
    }

    #[test]
    fn no_soup_of_bytes_confuses() {
        let mut random = Random(0x5eed_1234_5678_9abc);
        let mut seen = BTreeMap::new();
        for round in 0..4_000 {
            let input = soup(&mut random);
            let whole = outcome(&[&input]);
            for code in codes(&whole.0, &heads_of(&input)) {
                *seen.entry(code).or_insert(0) += 1;
            }
            let (mut chunks, mut rest) = (vec![], input.as_slice());
            while !rest.is_empty() {
                let (chunk, tail) = rest.split_at(1 + random.below(rest.len()));
                chunks.push(chunk);
                rest = tail;
            }
            assert_eq!(outcome(&chunks), whole, "round {round}");
        }
        for code in [
            "200", "400", "404", "405", "413", "414", "431", "503", "505",
        ] {
            assert!(seen.contains_key(code), "{code} never came up: {seen:?}");
        }
    }

    /// Calls in any order, with any counts, at any time: nothing panics, and
    /// every client is gone when its time is over.
    #[test]
    fn no_order_of_calls_breaks_a_server() {
        let mut random = Random(0x0dd_ba11);
        let mut server = server::<4>();
        let mut now = START;
        for round in 0..40_000 {
            now = now.after(Duration::from_millis(random.below(400) as u64));
            if random.below(4) == 0 {
                server.accept(socket(round), PEER, now);
            }
            while server.next_to_close(now, WALL).is_some() {}
            assert!(!now.reaches(server.deadline()));
            let step = random.below(60_000);
            for exchange in server.exchanges() {
                let input = soup(&mut random);
                match random.below(8) {
                    0 => exchange.end_of_input(),
                    1 if random.below(9) == 0 => exchange.fail(),
                    2..5 if exchange.interest().readable => {
                        let room = exchange.room();
                        let count = room.len().min(input.len());
                        room[..count].copy_from_slice(&input[..count]);
                        exchange.received(count, now);
                    }
                    5 => exchange.sent(step, now),
                    _ => {
                        if let Some(request) = exchange.next_request(WALL) {
                            answer(exchange, request, &SHORT_LIST);
                        }
                    }
                }
                assert_eq!(
                    exchange.to_send().is_empty(),
                    exchange.state != State::Sending
                );
            }
        }
        for _ in 0..3 {
            now = now.after(HTTP_KEEP_ALIVE);
            while server.next_to_close(now, WALL).is_some() {}
        }
        assert_eq!(server.len(), 0);
    }
}
