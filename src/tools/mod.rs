//! Commands that end at once.

pub mod blocks;
