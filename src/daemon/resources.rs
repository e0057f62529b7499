//! What the resources of HTTP say of the other parts: /metrics, /healthz,
//! /blocked, /blocks.

use core::net::IpAddr;

use crate::address::{Network, is_loopback};
use crate::firewall::Backend;
use crate::host::{Host, Knowledge};
use crate::metrics::{EvidenceSource, Metrics, Table};
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
        let has_events = u64::from(self.watcher.is_up());
        metrics
            .evidence_source_up
            .set(EvidenceSource::DestroyEvents, has_events);
        metrics
            .evidence_source_up
            .set(EvidenceSource::Namespaces, self.namespaces.is_up().into());
        metrics.witness_up = self.witness.is_up();
        let firewall = &self.commands.firewall;
        metrics.blocked_sources = firewall.standing() as u64;
        metrics.blocks_adopted = firewall.adopted();
        metrics.blocks_pending = (firewall.pending() + firewall.held_back()) as u64;
        metrics.blocking_enabled = firewall.is_enabled();
        metrics.firewall_up = firewall.is_up();
        for backend in [Backend::IptablesNft, Backend::IptablesLegacy, Backend::Nft] {
            let uses = u64::from(firewall.uses(backend));
            metrics.backends.set(backend, uses);
        }
        metrics.firewall_jump_first = firewall.is_jump_first();
        metrics.firewall_repairs = firewall.repairs();
        metrics.host_facts_known =
            !self.host.is_incomplete() && self.host.knowledge() != Knowledge::Lacking;
        metrics.probes_of_blocked = self.intake.probes.of_blocked;
        metrics.output_lines_dropped = self.lines_dropped;
    }

    fn update_tables(&self, metrics: &mut Metrics) {
        let (connections, detector) = (&self.intake.connections, &self.intake.detector);
        let firewall = &self.commands.firewall;
        let (listeners, probes) = (&connections.listeners, &self.intake.probes.sources);
        let (remembered, sources) = (connections.remembered().0, detector.sources().0);
        for (table, entries, evictions) in [
            (Table::Connections, remembered, connections.evictions()),
            (Table::Sources, sources, detector.evictions()),
            (Table::Blocks, firewall.entries().0, firewall.evictions()),
            (Table::Listeners, listeners.entries(), listeners.evictions()),
            (Table::Probes, probes.sources().0, probes.evictions()),
        ] {
            metrics.table_entries.set(table, entries as u64);
            metrics.table_evictions.set(table, evictions);
        }
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
