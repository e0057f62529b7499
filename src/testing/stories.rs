//! Short stories of the whole daemon, each to be read from top to bottom.

use std::net::IpAddr;

use super::fake_kernel::{FakeKernel, Mishap, Stdout};
use super::fake_proc::FakeSocket;
use super::run::Run;
use crate::daemon::Flow;
use crate::kernel::Errno;
use crate::proc_net_tcp::TcpState;
use crate::time::Duration;

const OWN: &str = "203.0.113.5";
const OWN_IPV6: &str = "2001:db8:1::5";
/// Off-link, IPv4.
const SCANNER: &str = "198.51.100.7";
/// In the host's own network.
const NEIGHBOUR: &str = "10.0.0.9";

/// A host that listens on 22, 25, 80, 443 and 445, on all addresses.
fn host() -> Run {
    let mut run = Run::new(1);
    for port in [22, 25, 80, 443, 445] {
        run.kernel.listen_on("0.0.0.0", port);
        run.kernel.listen_on("::", port);
    }
    run
}

fn started(arguments: &[&str]) -> Run {
    let mut run = host();
    assert_eq!(run.start(arguments), Flow::Continue);
    run.run_for(1);
    run.lines();
    run
}

impl FakeKernel {
    pub fn listen_on(&mut self, address: &str, port: u16) {
        let address: IpAddr = address.parse().unwrap();
        let any = if address.is_ipv4() { "0.0.0.0" } else { "::" };
        self.sockets.push(FakeSocket {
            local: (address, port),
            remote: (any.parse().unwrap(), 0),
            state: TcpState::Listen,
            inode: u32::from(port),
            is_dual_stack: false,
        });
    }

    /// `peer` connects from `from` to `port`, and stays.
    pub fn open_connection(&mut self, peer: &str, from: u16, port: u16) {
        let peer: IpAddr = peer.parse().unwrap();
        let own = if peer.is_ipv4() { OWN } else { OWN_IPV6 };
        let inode = 1_000_000 + self.sockets.len() as u32;
        self.sockets.push(FakeSocket {
            local: (own.parse().unwrap(), port),
            remote: (peer, from),
            state: TcpState::Established,
            inode,
            is_dual_stack: false,
        });
    }

    /// `peer` connects to four ports.
    pub fn scan(&mut self, peer: &str) {
        for (from, port) in (50_000..).zip([22, 25, 80, 445]) {
            self.open_connection(peer, from, port);
        }
    }

    pub fn close_all_of(&mut self, peer: &str) {
        let peer: IpAddr = peer.parse().unwrap();
        self.sockets.retain(|socket| socket.remote.0 != peer);
    }
}

#[test]
fn a_scanner_is_printed_and_blocked() {
    let mut run = started(&[]);
    run.kernel.scan(SCANNER);
    run.run_for(10);
    let lines = run.lines();
    assert_eq!(
        lines[4],
        "Port scan detected: 198.51.100.7 -> 203.0.113.5 on ports 22,25,80,445"
    );
    assert_eq!(
        lines[5],
        "Blocked: 198.51.100.7 for 10m, data sent: unknown, undo: iptables -w 5 -D TCPPARSER \
         -s 198.51.100.7/32 -m comment --comment \
         \"tcpparser v1 b=0badcafe e=1210 s=1 t=610 d=? p=22,25,80,445\" -j DROP"
    );
    assert_eq!(run.kernel.tables[0].rules("INPUT"), ["-j TCPPARSER"]);
    assert_eq!(run.kernel.tables[0].rules("FORWARD"), ["-j TCPPARSER"]);
    run.check_quiet();
    run.terminate();
    assert_eq!(
        run.lines(),
        ["1 block stands; to lift all: iptables -w 5 -F TCPPARSER"]
    );
}
