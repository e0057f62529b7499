//! tcpparser: watches every TCP connection of a host, recognises port scans
//! and blocks the scanner.
//!
//! Data flows one way: bytes -> sockets -> events -> verdicts -> commands.
//! Metrics observe and decide nothing.
//!
//! ```text
//!  /proc/net/tcp  sock_diag  packets  conntrack     :3021         nf_tables  iptables
//!        |read        |recv     |recv     |exact recv|  ^send    send| ^recv  |fork+exec
//! linux  |============|=========|=========|==========|==|============|=|======|====  all unsafe above
//!        v            v         v         v          v  |            v |      v
//!  proc_net_tcp   sock_diag<--packets conntrack   http  <- exposition <- metrics
//!         \           /  asked for      /                            |        |
//!          connections ---Event---> detector ---Verdict---> firewall: sets  | chain
//! daemon: owns the tables; one `turn` calls these left to right and hands
//! each result to the next
//! ```
//!
//! One row of /proc/net/tcp, from read(2) to the DROP. `Daemon::turn` calls
//! `read_when_due`, `report_scans`, `run_commands` and `watch_command`:
//!
//! ```text
//! Reader::read             bytes of a KeptFile into RowReader, which finds rows
//! proc_net_tcp::parse_row  text -> Socket
//! Intake::row              Socket -> Connections::observe -> Sighting
//! Admission::admit         Case::verdict: counts, waits in Waiting, or neither
//! Detector::observe        Evidence; next_scan -> Scan
//! Commands::decide         what is protected; Firewall::block: it is wanted
//!                          Firewall::active: in the sets or the chain
//! Commands::converse       Firewall::request -> bytes; Netfilter::exchange;
//!                          Firewall::answered: it stands in the sets
//! Commands::start          Firewall::command -> Invocation; Kernel::spawn
//! Commands::watch          the child's exit; Firewall::finished: it stands in
//!                          the chain
//! ```
//!
//! One destroy event, by `take_events`; from there on as above:
//!
//! ```text
//! Watcher::take            bytes of a datagram
//! sock_diag::walk_events   message -> DiagSocket
//! Intake::event            DiagSocket -> Connections::ended -> Ending
//! Admission::admit
//! ```
//!
//! One connection that its peer holds open, by `take_packets` and
//! `look_up_opens`; no byte of a packet goes further than `Opens`, `Sights` and
//! `Probes`:
//!
//! ```text
//! Witness::drain           bytes of packet sockets
//! packets::parse           bytes -> Packet
//! Opens::note              a SYN that may complete a scan waits for its socket
//! Opens::look              when it is asked for
//! Intake::look_up          the kernel's answer -> Socket; as a row from there on
//! ```
//!
//! One packet that asks for a port, by `take_packets` and `report_probes`:
//!
//! ```text
//! Witness::drain           as above
//! Intake::probe            whether it says anything about its source
//! Probes::note             Packet; next -> Scan, a line and a count
//! Detector::forget_port    a handshake: that was none
//! ```
//!
//! One connection that ended in another network namespace, by
//! `take_namespace_events`; from `Admission` on as above:
//!
//! ```text
//! Namespaces::receive      bytes of a datagram -> DiagSocket that may be evidence
//! Witness::drain           SYNs that came in before -> Sights::note
//! conntrack::answer        what its peer asked for, if the peer began it
//! netlink::walk_next_hops  the links that lead back to the peer
//! Sights::came_back_way    whether its SYN came in by one of them, and no other
//! Admission::admit         Waiter, whole or only to be told
//! ```
//!
//! One HTTP request, by `serve`:
//!
//! ```text
//! Web::accept              a descriptor becomes an Exchange of Server
//! Web::service_clients     recv(2) into Exchange::received
//! Exchange::next_request   bytes -> Request
//! Resources, Page::update  what the parts count; Snapshot -> exposition::write
//! Exchange::respond        Status, head, body; send(2) of Exchange::to_send
//! Web::close_clients       the end, or its time is over
//! ```
//!
//! One event for the hook, by `report_scans` and the notices of `Firewall`; the
//! launcher is a process of its own, forked before anything else is opened:
//!
//! ```text
//! Hook::notify             scan, block, unblock -> a record in a pipe
//! linux::launch            record -> words of a child, one at a time
//! Hook::take_answer        a byte: how it ended
//! ```
//!
//! The end of the start, by `enter_sandbox`:
//!
//! ```text
//! Confinement::due         all is open and listed: Tier, by whether tools will run
//! sandbox::sandbox         Tier -> capabilities, files and a filter of calls
//! Kernel::enter_sandbox    which layers of it hold
//! ```
//!
//! What stands where (a test demands each file of this folder):
//!
//! ```text
//! main.rs          C entry and panic handler
//! limits.rs        every capacity and period, with its reason
//! text.rs          bounded text
//! time.rs          instants and durations
//! time_zone.rs     how far local time is ahead
//! address.rs       addresses and networks
//! table.rs         fixed tables
//! label.rs         values of labels of metrics
//! kernel.rs        what is asked of the kernel
//! linux.rs         the same for real, the only unsafe code
//! sandbox.rs       what is still needed once everything is open
//! options.rs       command line and environment
//! proc_net_tcp.rs  rows to sockets
//! sock_diag.rs     kernel events to sockets
//! packets.rs       which packets are looked at, and what they ask for
//! netlink.rs       dumps of addresses, routes and links, and one route
//! conntrack.rs     who began a connection of another namespace
//! nf_tables.rs     the table of nf_tables to messages of the kernel, and back
//! host.rs          own addresses, networks, gateways and nameservers
//! listeners.rs     which local ports are services
//! sights.rs        by which link its SYN came in
//! waiting.rs       what waits until that is known
//! connections.rs   this reading against the last: what opened, what closed, in
//!                  which direction
//! coverage.rs      what the kernel counted against what was seen
//! detector.rs      events to verdicts
//! probes.rs        sources whose packets ask for ports and prove nothing
//! firewall/        verdicts to commands, and the life of a block
//!   place.rs         families and flavours
//!   comment.rs       a block as the comment of its rule
//!   iptables.rs      rules and command lines of the chain
//!   child.rs         what the tools are to do, and what came of it
//!   explanation.rs   what the tools say
//!   sets.rs          conversations with nf_tables
//!   changes.rs       what is next in one place, by child or netlink
//!   shares.rs        whose turn it is when there are too many
//!   widening.rs      many blocks of one network become one
//!   filter_table.rs  what is known of one table
//!   listing.rs       what stands against what is wanted
//!   jump.rs          what has the first place
//! report.rs        the lines of output
//! http.rs          requests and answers
//! metrics.rs       what is counted
//! exposition.rs    that as text
//! daemon/          ties all of it together in one loop: mod.rs has the turn, the
//!                  other files one part of the state each, such as netfilter.rs
//!                  the sockets of nf_tables
//! tools/           commands that run once and end: --list, --unblock and
//!                  --healthcheck
//! testing/         fake kernel, simulator, oracles to compare with, scenarios,
//!                  rules about the source
//! ```
//!
//! A module imports only from those above it in the list below.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod text;

mod label;
mod time;

mod address;
mod limits;
mod table;
mod time_zone;

mod kernel;
mod netlink;
mod sandbox;

mod host;
mod nf_tables;
mod options;
mod packets;
mod proc_net_tcp;
mod sock_diag;

mod conntrack;
mod coverage;
mod http;
mod sights;

mod listeners;

mod connections;
mod detector;
mod firewall;
mod probes;

mod metrics;

mod exposition;
mod report;
mod waiting;

pub mod daemon;
mod tools;

#[allow(unsafe_code)]
pub mod linux;

#[cfg(test)]
mod testing;
