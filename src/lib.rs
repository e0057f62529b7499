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

pub mod text;
pub mod time;

pub mod address;
pub mod limits;
pub mod table;

pub mod kernel;
pub mod netlink;

pub mod host;
pub mod options;
pub mod proc_net_tcp;
pub mod sock_diag;

pub mod coverage;
pub mod http;
pub mod metrics;

pub mod exposition;

pub mod listeners;

pub mod connections;
pub mod detector;
pub mod firewall;
pub mod report;
pub mod waiting;

pub mod daemon;

#[allow(unsafe_code)]
pub mod linux;

#[cfg(test)]
mod testing;
