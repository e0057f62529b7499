//! Readings: one pass over tcp and tcp6.

use crate::address::Family;
use crate::connections::{Connection, Sighting};
use crate::kernel::{Descriptor, Errno, Kernel, Path, RowsFile};
use crate::limits::OUTPUT_PATIENCE;
use crate::listeners::Port;
use crate::metrics::{self, Trigger};
use crate::options::{Action, Show};
use crate::proc_net_tcp::{Row, Socket, TcpState};
use crate::report;
use crate::sock_diag::Handshake;
use crate::text::Text;
use crate::time::{Calendar, Instant};
use crate::waiting::Waiter;

use super::Daemon;
use super::output::error_words;

/// A file of rows and whether it could be read.
pub(super) struct RowsSource {
    pub(super) path: Path,
    /// Kept open where it is on procfs.
    open: Option<Descriptor>,
    has_said_unreadable: bool,
}

impl RowsSource {
    const fn new() -> Self {
        Self {
            path: Path::new(),
            open: None,
            has_said_unreadable: false,
        }
    }
}

/// The files of one reading.
pub(super) struct Files {
    pub(super) tcp: RowsSource,
    pub(super) tcp6: RowsSource,
}

impl Files {
    pub(super) const fn new() -> Self {
        Self {
            tcp: RowsSource::new(),
            tcp6: RowsSource::new(),
        }
    }

    /// The files below --proc.
    pub(super) fn set_directory(&mut self, directory: &[u8]) {
        for (name, path) in [
            (&b"/net/tcp"[..], &mut self.tcp.path),
            (b"/net/tcp6", &mut self.tcp6.path),
        ] {
            path.clear();
            path.put(directory);
            path.put(name);
        }
    }
}

/// What stays the same during one reading.
#[derive(Clone, Copy)]
struct Pass {
    now: Instant,
    calendar: Calendar,
    trigger: Trigger,
    file: metrics::RowsFile,
}

/// How reading one file went.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Whole,
    Absent,
    Failed,
}

impl Daemon {
    /// When a reading, or a look at what may bring one, is due.
    pub(super) fn reading_deadline(&self) -> Instant {
        let deadlines = [self.watch.deadline(), self.supervisor.deadline()];
        deadlines.into_iter().fold(self.next_reading, Instant::min)
    }

    /// The scheduled reading, or an early one where something hints at
    /// connections that nobody saw.
    pub(super) fn read_when_due(&mut self, kernel: &mut impl Kernel) {
        let now = kernel.boottime();
        if now < self.reading_deadline() {
            return;
        }
        // Before what was seen is held against the kernel's count.
        self.take_events(kernel);
        self.check_events(kernel, now);
        self.watch_counters(kernel, now);
        if !self.firewall.is_settled(now) {
            return;
        }
        let trigger = if now >= self.next_reading {
            // Keep the beat; after a long suspend start a new one.
            let next = self.next_reading.after(self.options.interval);
            let late = now.after(self.options.interval);
            self.next_reading = if next > now { next } else { late };
            self.facts
                .refresh(kernel, &mut self.host, &mut self.netlink_buffer);
            self.firewall.release_protected(&self.host);
            Trigger::Scheduled
        } else if self.watch.is_early_due(now) || now >= self.supervisor.deadline() {
            Trigger::Early
        } else {
            return;
        };
        let cpu_before = kernel.cpu_time();
        self.reading(kernel, trigger);
        let cost = kernel.cpu_time().saturating_sub(cpu_before);
        self.watch
            .reading_done(kernel.boottime(), cost, trigger == Trigger::Early);
        let is_good = self.last_good_reading >= now;
        if is_good {
            self.retry_waiting(true, self.last_good_reading);
        }
        self.supervisor.reading_done(kernel, is_good);
    }

    /// One reading; whether tcp could be read.
    pub(super) fn reading(&mut self, kernel: &mut impl Kernel, trigger: Trigger) -> bool {
        let now = kernel.boottime();
        let calendar = self.calendar(kernel);
        let pass = Pass {
            now,
            calendar,
            trigger,
            file: metrics::RowsFile::Tcp,
        };
        if self.options.action == Action::Run {
            self.output
                .set_wait_budget(OUTPUT_PATIENCE.saturating_mul(10), OUTPUT_PATIENCE);
        }
        self.metrics.connections.clear();
        self.listed = 0;
        let counters = self.settled_counters(kernel);
        self.connections.begin_reading();
        let (can_ask, expects_events) = (self.watch.is_wanted(), self.watch.expects_events());
        self.handshakes.begin_reading(can_ask, expects_events);
        let tcp = self.read_file(kernel, pass);
        let tcp6 = self.read_file(
            kernel,
            Pass {
                file: metrics::RowsFile::Tcp6,
                ..pass
            },
        );
        self.handshakes.end_reading(kernel);
        if tcp6 == Outcome::Whole {
            self.firewall.set_ipv6();
        }
        let is_whole = tcp == Outcome::Whole && tcp6 != Outcome::Failed;
        if is_whole {
            self.connections.end_reading(now);
            self.say_unknown_listeners(kernel);
            self.coverage_after(kernel, counters, trigger == Trigger::Scheduled);
            self.last_good_reading = now;
            self.metrics.last_reading_unix_nanoseconds = kernel.realtime();
        } else {
            self.metrics.readings_failed += 1;
        }
        self.metrics
            .evidence_source_up
            .set(metrics::EvidenceSource::Readings, u64::from(is_whole));
        self.metrics.readings.count(trigger);
        self.detector.expire(now);
        self.end_list(kernel, trigger, tcp == Outcome::Whole);
        self.metrics
            .reading_duration
            .observe(kernel.boottime().since(now));
        tcp == Outcome::Whole
    }

    /// A blind spot is said, once.
    fn say_unknown_listeners(&mut self, kernel: &mut impl Kernel) {
        let has_unknown = self.connections.listeners.has_unknown();
        if has_unknown && !core::mem::replace(&mut self.has_said_unknown, true) {
            let words =
                b"more listeners of one address than fit; connections to the rest are no evidence";
            self.complain(kernel, &[words]);
        }
    }

    fn end_list(&mut self, kernel: &mut impl Kernel, trigger: Trigger, has_rows: bool) {
        if trigger != Trigger::Scheduled {
            return;
        }
        self.listed += self.list_extras(kernel);
        self.last_scheduled = kernel.boottime();
        let established = self
            .metrics
            .connections
            .get(Family::V4, TcpState::Established)
            + self
                .metrics
                .connections
                .get(Family::V6, TcpState::Established);
        let is_empty = match self.options.show {
            Show::All => self.listed == 0,
            // A list without news is no list without connections.
            Show::New => self.listed == 0 && established == 0,
            Show::Scans => false,
        };
        if is_empty && has_rows {
            self.output.line(kernel, report::NO_CONNECTION);
        }
    }

    fn source(&mut self, file: metrics::RowsFile) -> &mut RowsSource {
        match file {
            metrics::RowsFile::Tcp => &mut self.files.tcp,
            metrics::RowsFile::Tcp6 => &mut self.files.tcp6,
        }
    }

    fn read_file(&mut self, kernel: &mut impl Kernel, pass: Pass) -> Outcome {
        let opened = match self.source(pass.file).open {
            Some(descriptor) => kernel
                .rewind(descriptor)
                .map(|()| RowsFile::Procfs(descriptor)),
            None => kernel.open_rows(&self.source(pass.file).path),
        };
        let result = match opened {
            Ok(RowsFile::Procfs(descriptor)) => {
                let result = self.read_rows(kernel, descriptor, pass);
                self.source(pass.file).open = Some(descriptor);
                result
            }
            Ok(RowsFile::Regular(descriptor)) => {
                let result = self.read_rows(kernel, descriptor, pass);
                kernel.close(descriptor);
                result
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                self.source(pass.file).has_said_unreadable = false;
                Outcome::Whole
            }
            // A kernel without IPv6 has no tcp6.
            Err(Errno::ENOENT) if pass.file == metrics::RowsFile::Tcp6 => Outcome::Absent,
            Err(error) => {
                self.unreadable(kernel, pass.file, error);
                Outcome::Failed
            }
        }
    }

    /// Said once, retried with each reading.
    fn unreadable(&mut self, kernel: &mut impl Kernel, file: metrics::RowsFile, error: Errno) {
        let source = self.source(file);
        if let Some(descriptor) = source.open.take() {
            kernel.close(descriptor);
        }
        let source = self.source(file);
        if core::mem::replace(&mut source.has_said_unreadable, true) {
            return;
        }
        let path = source.path.clone();
        let printable = |byte: &u8| (b' '..=b'~').contains(byte);
        let path = if path.as_bytes().iter().all(printable) {
            path.as_bytes()
        } else {
            b"--proc"
        };
        let why = if error == Errno::EINVAL {
            Text::from_bytes(b"neither on procfs nor a regular file")
        } else {
            error_words(error)
        };
        self.complain(kernel, &[b"cannot read ", path, b": ", why.as_bytes()]);
    }

    fn read_rows(
        &mut self,
        kernel: &mut impl Kernel,
        file: Descriptor,
        pass: Pass,
    ) -> Result<(), Errno> {
        self.rows.begin();
        loop {
            match kernel.read(file, self.rows.space()) {
                Ok(0) => break,
                Ok(count) => self.rows.filled(count),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error),
            }
            while let Some(row) = self.rows.next() {
                self.take_row(kernel, row, pass);
            }
        }
        if let Some(row) = self.rows.end() {
            self.take_row(kernel, row, pass);
        }
        Ok(())
    }

    fn take_row(&mut self, kernel: &mut impl Kernel, row: Row, pass: Pass) {
        match row {
            Row::Socket(socket) => {
                self.metrics.rows.count(pass.file);
                self.take_socket(kernel, &socket, pass);
            }
            Row::Malformed => self.metrics.malformed_rows += 1,
        }
    }

    fn take_socket(&mut self, kernel: &mut impl Kernel, socket: &Socket, pass: Pass) {
        let (watch, host) = (&self.watch, &self.host);
        let is_own = &|| watch.is_local(host, socket.local.address);
        let sighting = self.connections.observe(socket, is_own, pass.now);
        let (connection, is_opened) = match sighting {
            Sighting::Opened(connection) => (connection, true),
            Sighting::Standing(connection) => (connection, false),
            Sighting::Repeated => return,
            Sighting::Other => {
                if !self.host.is_own(socket.remote.address) {
                    self.count_state(socket);
                }
                return;
            }
        };
        if self.host.is_own(socket.remote.address) {
            return;
        }
        self.count_state(socket);
        if is_opened {
            self.count_new(connection, socket.local);
        }
        let source = self.host.source_of(socket.remote.address);
        if self.firewall.is_blocked(source) {
            if is_opened {
                self.firewall.doubt(source, pass.now);
            }
            return;
        }
        if pass.trigger == Trigger::Scheduled && socket.state == TcpState::Established {
            self.list(kernel, socket, connection, pass);
        }
        // TIME_WAIT proves a handshake once, not that anything is open.
        let counts =
            socket.state != TcpState::TimeWait || connection.handshake != Handshake::Proven;
        if counts && connection.port != Port::Unknown && self.is_proven(kernel, socket, connection)
        {
            let first_seen = connection.first_seen;
            let waiter = Waiter::new(source, socket.local, socket.remote, first_seen);
            self.admit(&waiter, connection.port, pass.now);
        }
    }

    fn is_proven(
        &mut self,
        kernel: &mut impl Kernel,
        socket: &Socket,
        connection: Connection,
    ) -> bool {
        let noted = connection.handshake;
        let buffer = &mut self.netlink_buffer;
        let handshake = self.handshakes.of_row(kernel, buffer, socket, noted);
        if handshake != noted {
            self.connections.set_handshake(connection, handshake);
        }
        handshake == Handshake::Proven
    }

    fn list(
        &mut self,
        kernel: &mut impl Kernel,
        socket: &Socket,
        connection: Connection,
        pass: Pass,
    ) {
        let is_listed = match self.options.show {
            Show::All => true,
            Show::New => connection.first_seen > self.last_scheduled,
            Show::Scans => false,
        };
        if is_listed {
            self.listed += 1;
            self.connections.set_listed(connection);
            let line = report::connection(
                pass.calendar,
                socket.remote,
                connection.direction,
                socket.local,
            );
            self.output.line(kernel, line.as_bytes());
        }
    }

    fn count_state(&mut self, socket: &Socket) {
        let family = Family::of(socket.local.address);
        self.metrics.connections.count(family, socket.state);
    }
}
