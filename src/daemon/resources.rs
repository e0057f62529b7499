//! What the resources of HTTP say of the other parts: /metrics, /healthz,
//! /blocked, /blocks.

use core::net::IpAddr;

use crate::address::{Network, is_loopback};
use crate::firewall::Backend;
use crate::host::{Host, Knowledge};
use crate::metrics::{self, EvidenceSource, Metrics, Table};
use crate::options::Options;
use crate::report;
use crate::text::TextView;
use crate::time::Instant;

use super::clock::Moment;
use super::commands::Commands;
use super::intake::Intake;
use super::namespaces::Namespaces;
use super::reader::Reader;
use super::watcher::Watcher;
use super::witness::Witness;

/// The longest line of `/blocks`: an IPv6 address, three numbers, the ports of a
/// comment and a place.
const BLOCK_LINE: usize = 256;

/// The parts as they are in this turn.
#[derive(Clone, Copy)]
pub(super) struct Resources<'a> {
    pub(super) options: &'a Options,
    pub(super) host: &'a Host,
    pub(super) reader: &'a Reader,
    pub(super) watcher: &'a Watcher,
    pub(super) witness: &'a Witness,
    pub(super) namespaces: &'a Namespaces,
    pub(super) intake: &'a Intake,
    pub(super) commands: &'a Commands,
    pub(super) lines_dropped: u64,
}

impl Resources<'_> {
    /// Copies what the parts know into the gauges.
    pub(super) fn update_gauges(&self, metrics: &mut Metrics) {
        self.update_tables(metrics);
        let source = |source| metrics::EVIDENCE_SOURCE_UP.of(source);
        metrics.set(source(EvidenceSource::DestroyEvents), self.watcher.is_up());
        metrics.set(source(EvidenceSource::Namespaces), self.namespaces.is_up());
        metrics.set(metrics::WITNESS_UP, self.witness.is_up());
        let firewall = &self.commands.firewall;
        metrics.set(metrics::BLOCKED_SOURCES, firewall.standing() as u64);
        metrics.set(metrics::BLOCKS_ADOPTED, firewall.adopted());
        let pending = firewall.pending() + firewall.held_back();
        metrics.set(metrics::BLOCKS_PENDING, pending as u64);
        metrics.set(metrics::BLOCKING_ENABLED, firewall.is_enabled());
        metrics.set(metrics::FIREWALL_UP, firewall.is_up());
        for backend in [Backend::IptablesNft, Backend::IptablesLegacy, Backend::Nft] {
            metrics.set(metrics::FIREWALL.of(backend), firewall.uses(backend));
        }
        metrics.set(metrics::FIREWALL_JUMP_FIRST, firewall.is_jump_first());
        metrics.set(metrics::FIREWALL_REPAIRS, firewall.repairs());
        let is_known = !self.host.is_incomplete() && self.host.knowledge() != Knowledge::Lacking;
        metrics.set(metrics::HOST_FACTS_KNOWN, is_known);
        metrics.set(metrics::PROBES_OF_BLOCKED, self.intake.probes.of_blocked);
        metrics.set(metrics::OUTPUT_LINES_DROPPED, self.lines_dropped);
    }

    fn update_tables(&self, metrics: &mut Metrics) {
        let (connections, detector) = (&self.intake.connections, &self.intake.detector);
        let firewall = &self.commands.firewall;
        let (listeners, probes) = (&connections.listeners, &self.intake.probes.sources);
        let mut set = |table, entries: usize, evictions| {
            metrics.set(metrics::TABLE_ENTRIES.of(table), entries as u64);
            metrics.set(metrics::TABLE_EVICTIONS.of(table), evictions);
        };
        let (remembered, sources) = (connections.remembered().0, detector.sources().0);
        set(Table::Connections, remembered, connections.evictions());
        set(Table::Sources, sources, detector.evictions());
        set(Table::Blocks, firewall.entries().0, firewall.evictions());
        set(Table::Listeners, listeners.entries(), listeners.evictions());
        set(Table::Probes, probes.sources().0, probes.evictions());
    }

    /// What keeps the daemon from being well: a subject and the rest of a line.
    pub(super) fn trouble(&self, now: Instant) -> Option<[&'static [u8]; 2]> {
        if !self.reader.is_fresh(self.options.interval, now) {
            return Some([b"the last good reading", b" is too old\n"]);
        }
        self.commands.trouble(self.host)
    }

    /// Whether a client may see the list of blocked sources: neighbours only.
    pub(super) fn may_list(&self, peer: IpAddr) -> bool {
        let network = Network::single(peer);
        let mut allowed = self.options.allow.iter();
        is_loopback(peer)
            || self.host.is_on_link(network)
            || allowed.any(|one| one.overlaps(network))
    }

    /// Lists blocked sources from `cursor` on; where the next part begins.
    /// `details`: with all that is known of each block at this moment.
    pub(super) fn list_blocked(
        &self,
        mut cursor: u32,
        body: &mut TextView,
        details: Option<Moment>,
    ) -> Option<u32> {
        if cursor == 0 && details.is_some() {
            body.put(report::BLOCKS_HEAD);
        }
        while let Some((at, standing)) = self.commands.firewall.standing_from(cursor) {
            if body.room() < BLOCK_LINE {
                return Some(cursor);
            }
            match details {
                None => standing.source.write_cidr(body),
                Some(moment) => {
                    report::put_block(body, &standing, moment.now, moment.unix_nanoseconds)
                }
            }
            body.put_byte(b'\n');
            cursor = at + 1;
        }
        None
    }
}
