//! Commands that run once and end, beside a daemon or without one.

pub mod blocks;
pub mod healthcheck;
