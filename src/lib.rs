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
