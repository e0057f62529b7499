//! The daemon against injected faults: the fake kernel, scenarios on it, the
//! simulator with its oracle, and rules about the source text as tests.

mod container_scenarios;
pub mod fake_kernel;
mod fake_network;
pub mod fake_proc;
mod filter_table;
mod firewall_scenarios;
pub mod golden;
mod hook_scenarios;
mod liars;
mod nf_tables_model;
mod oracle;
mod probe_scenarios;
mod run;
mod sandbox_scenarios;
mod scenarios;
mod simulator;
mod tidy;
mod trace;
mod witness_scenarios;

/// In a debug build a value stands on the stack first.
pub fn boxed<T: Send + 'static>(build: fn() -> T) -> std::boxed::Box<T> {
    let thread = std::thread::Builder::new().stack_size(64 << 20);
    let built = thread.spawn(move || std::boxed::Box::new(build()));
    built.unwrap().join().unwrap()
}
