//! When rights are given up: once all that needs them is open.

use crate::kernel::Kernel;
use crate::label::Label;
use crate::limits::SANDBOX_WAIT;
use crate::metrics::{self, Metrics};
use crate::options::Options;
use crate::sandbox::{Filter, Layer, Tier, sandbox};
use crate::time::Instant;

use super::Firewall;
use super::facts::RESOLVER_FILES;
use super::output::log_pair;

/// All bytes zero when there is none to enter.
pub(super) struct Confinement {
    /// When it is entered in any case; `None` where it was, or is not to be.
    deadline: Option<Instant>,
}

impl Confinement {
    pub(super) const fn new() -> Self {
        Self { deadline: None }
    }

    /// From now on it is waited for.
    pub(super) fn start(&mut self, options: &Options, metrics: &mut Metrics, now: Instant) {
        self.deadline = options.has_sandbox.then(|| now.after(SANDBOX_WAIT));
        metrics.set(metrics::SANDBOX_INFO.of(Tier::None), true);
    }

    /// The tier whose time has come: a listing by iptables may load modules, which
    /// needs more than is kept, and one that hangs keeps nothing open for ever.
    #[inline(never)]
    pub(super) fn due(&self, firewall: &Firewall, is_idle: bool, now: Instant) -> Option<Tier> {
        let deadline = self.deadline?;
        let (are_over, runs_tools) = firewall.first_listings();
        let is_due = is_idle && are_over || now >= deadline;
        is_due.then_some(if runs_tools {
            Tier::Confined
        } else {
            Tier::Sealed
        })
    }

    #[inline(never)]
    pub(super) fn enter(
        &mut self,
        kernel: &mut impl Kernel,
        tier: Tier,
        options: &Options,
        awaits_port: bool,
        metrics: &mut Metrics,
    ) {
        self.deadline = None;
        let mut calls = Filter::new();
        let mut sandbox = sandbox(tier, options.exec_root.as_bytes(), awaits_port, &mut calls);
        sandbox.proc_directory = options.proc_directory.as_bytes();
        sandbox.beside = RESOLVER_FILES.as_bytes();
        let layers = kernel.enter_sandbox(&sandbox);
        metrics.set(metrics::SANDBOX_INFO.of(Tier::None), false);
        metrics.set(metrics::SANDBOX_INFO.of(tier), true);
        for layer in Layer::ALL {
            let holds = layers & layer.bit() != 0;
            metrics.set(metrics::SANDBOX.of(layer), holds);
            if !holds {
                let words = b"the kernel or a container refuses part of the sandbox: ";
                log_pair(kernel, words, layer.value());
            }
        }
    }
}
