//! tcpparser: watches every TCP connection of a host, recognises port scans
//! and blocks the scanner.
//!
//! Data flows one way: bytes -> sockets -> events -> verdicts -> commands.
//! Metrics observe and decide nothing.
//!
//! ```text
//!        /proc/net/tcp  sock_diag            :3021                     iptables
//!              |read        |recv          recv|  ^send          fork+exec|  ^exit status
//! linux.rs  ===|============|=================|==|=====================|==|====  all unsafe above
//!              v            v                 v  |                     |  |
//!        proc_net_tcp   sock_diag           http  <- exposition <- metrics |
//!              \           /                                               |
//!            connections ---Event---> detector ---Verdict---> firewall --Command
//! daemon: owns the tables; one `turn` calls these left to right and hands
//! each result to the next
//! ```
//!
//! One row of /proc/net/tcp, from read(2) to the DROP. `Daemon::turn` calls
//! `read_when_due`, `report_scans`, `run_commands` and `watch_command`:
//!
//! ```text
//! Reader::read             bytes of a KeptFile into RowReader, which yields Row
//! proc_net_tcp::parse_row  text -> Socket
//! Intake::row              Socket -> Connections::observe -> Sighting
//! Admission::admit         Case::verdict: counts, waits in Waiting, or neither
//! Detector::observe        Evidence; next_scan -> Scan
//! Commands::decide         what is protected; Firewall::block: it is wanted
//! Commands::start          Firewall::command -> Invocation; Kernel::spawn
//! Commands::watch          the child's exit; Firewall::finished: it stands
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

mod kernel;
mod netlink;

mod host;
mod nf_tables;
mod options;
mod proc_net_tcp;
mod sock_diag;

mod coverage;
mod http;

mod listeners;

mod connections;
mod detector;
mod firewall;

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
