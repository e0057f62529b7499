//! By which names this host may be asked for what is not for everyone. The owner
//! of any web page can have a name of theirs point here, and their page then
//! reads what the browser of a visitor gets (DNS rebinding): a name that nobody
//! else can own is asked for only by those who mean this host.

use crate::address::parse_address;
use crate::kernel::Kernel;
use crate::text::{before, eq_ignore_case, split, split_once, split_word};

use super::procfs::read_small;

/// Domains that are not to be had (RFC 6762, RFC 8375, ICANN on .internal), and
/// the one that routers give their networks.
const PRIVATE: &[u8] = b"lan,local,home.arpa,internal";

/// Whether the value of Host is an address, or a name that is ours for sure. It
/// is missing in HTTP/1.0 alone, which no browser speaks.
pub(super) fn is_ours(kernel: &mut impl Kernel, host: &[u8]) -> bool {
    is_local(host) || is_own(kernel, host)
}

/// Apart, since an idle daemon would touch the pages of its stack.
#[inline(never)]
fn is_own(kernel: &mut impl Kernel, host: &[u8]) -> bool {
    // At most __NEW_UTS_LEN of linux/utsname.h, and a newline.
    let mut own = [0; 66];
    let own = read_small(kernel, b"/proc/sys/kernel/hostname", &mut own);
    let mut resolver = [0; 4096];
    let resolver = read_small(kernel, b"/etc/resolv.conf", &mut resolver);
    is_named(name_of(host), before(own, b'\n'), resolver)
}

/// Without the port, and the dot that ends a whole name.
#[inline(never)]
fn name_of(host: &[u8]) -> &[u8] {
    without_dot(before(host, b':'))
}

#[inline(never)]
fn without_dot(name: &[u8]) -> &[u8] {
    name.strip_suffix(b".").unwrap_or(name)
}

fn is_local(host: &[u8]) -> bool {
    let address = match host.strip_prefix(b"[") {
        Some(inside) => before(inside, b']'),
        None => name_of(host),
    };
    let is_localhost = eq_ignore_case(address, b"localhost");
    host.is_empty() || is_localhost || parse_address(address).is_some()
}

/// Whether it is the host's `own` name, or that before a private domain or one
/// that resolv.conf searches.
fn is_named(name: &[u8], own: &[u8], resolver: &[u8]) -> bool {
    if own.is_empty() {
        return false;
    }
    let (first, domain) = split_once(name, b'.');
    let is_first = eq_ignore_case(first, before(own, b'.'));
    let is = |other: &[u8]| eq_ignore_case(domain, other);
    let is_searched = || split(resolver, b'\n').any(|line| is_search(line, domain));
    eq_ignore_case(name, own)
        || is_first && (domain.is_empty() || split(PRIVATE, b',').any(is) || is_searched())
}

/// Whether a line of resolv.conf(5) names the domain.
fn is_search(line: &[u8], domain: &[u8]) -> bool {
    let (keyword, mut rest) = split_word(line);
    if keyword != b"search" && keyword != b"domain" {
        return false;
    }
    loop {
        let (word, after) = split_word(rest);
        if word.is_empty() {
            return false;
        }
        if eq_ignore_case(without_dot(word), domain) {
            return true;
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_host_may_be_called() {
        let resolver = b"# search evil.example\nnameserver 192.0.2.53\n\
            search corp.example\tx.example. \nsearching evil.example\noptions search evil.example";
        for own in [&b"fw"[..], b"FW", b"fw.corp.example", b"fw.other.example"] {
            for (host, expected) in [
                ("", true),
                ("192.0.2.1", true),
                ("192.0.2.1:3021", true),
                ("[2001:db8::1]:3021", true),
                ("[::1]", true),
                ("localhost", true),
                ("LocalHost.:80", true),
                ("fw", true),
                ("Fw:3021", true),
                ("fw.", true),
                ("fw.lan", true),
                ("fw.LOCAL:3021", true),
                ("fw.home.arpa.", true),
                ("fw.internal", true),
                ("fw.corp.example:3021", true),
                ("fw.x.example", true),
                ("fw.evil.example", false),
                ("fw.example", false),
                ("fw.192.0.2.53", false),
                ("fw.search", false),
                ("fw.a.lan", false),
                ("a.fw.lan", false),
                ("evil.example", false),
                ("evil.example:3021", false),
                ("lan", false),
                ("corp.example", false),
                ("localhost.evil.example", false),
                ("192.0.2.1.evil.example", false),
                ("192.0.2.1.lan", false),
                ("2130706433", false),
                ("127.1", false),
                ("[fw]", false),
                ("[evil.example]:3021", false),
                (".", false),
                (":3021", false),
                (".lan", false),
            ] {
                let host = host.as_bytes();
                let found = is_local(host) || is_named(name_of(host), own, resolver);
                let text = std::string::String::from_utf8_lossy(host);
                assert_eq!(found, expected, "{text} {own:?}");
            }
        }
        let is_other = |name: &[u8]| is_named(name, b"fw.other.example", resolver);
        assert!(is_other(b"FW.other.example") && !is_other(b"other.example"));
        for name in [&b""[..], b"lan", b"."] {
            assert!(!is_named(name, b"", resolver), "no name of our own");
        }
    }
}
