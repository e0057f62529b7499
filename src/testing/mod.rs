//! The daemon against a world that lies on purpose: the fake kernel, stories
//! told over it, the simulator, and rules about the source text as tests.

pub mod fake_kernel;
pub mod fake_proc;
mod filter_table;
mod firewall_stories;
mod run;
mod simulator;
mod stories;
mod tidy;
mod twin;
