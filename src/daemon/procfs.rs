//! Small files of procfs that are read whole: settings of the kernel, and what
//! it has.

use crate::address::Family;
use crate::kernel::{Kernel, Link, Path};
use crate::listeners::PortRange;
use crate::text::{head, parse_decimal, split, split_word};

use super::files::open_regular;
use super::kept_file::fill;

/// The first bytes of a file; empty where it can't be read.
#[inline(never)]
pub(super) fn read_small<'a>(
    kernel: &mut impl Kernel,
    path: &[u8],
    buffer: &'a mut [u8],
) -> &'a [u8] {
    let Ok(file) = open_regular(kernel, &Path::from_bytes(path)) else {
        return &[];
    };
    let (filled, _) = fill(kernel, file.descriptor, buffer);
    kernel.close(file.descriptor);
    head(buffer, filled)
}

/// The first two numbers of a file below `sys`. A process's folder of procfs
/// has no `sys`: ours is the best guess there.
#[inline(never)]
pub(super) fn read_setting(
    kernel: &mut impl Kernel,
    proc_directory: &Path,
    name: &[u8],
) -> [Option<u64>; 2] {
    // Blanks stand between (kernel/sysctl.c, proc_dointvec).
    for directory in [proc_directory.as_bytes(), b"/proc"] {
        let mut path = Path::from_bytes(directory);
        path.put(name);
        let mut buffer = [0; 64];
        let text = read_small(kernel, path.as_bytes(), &mut buffer);
        let (first, rest) = split_word(text);
        if let Some(first) = parse_decimal(first) {
            return [Some(first), parse_decimal(split_word(rest).0)];
        }
    }
    [None; 2]
}

/// net.ipv4.ip_local_port_range, which IPv6 uses as well
/// (Documentation/networking/ip-sysctl.rst); its default where it can't be read.
pub(super) fn local_port_range(kernel: &mut impl Kernel, proc_directory: &Path) -> PortRange {
    let name = b"/sys/net/ipv4/ip_local_port_range";
    let numbers = read_setting(kernel, proc_directory, name);
    match numbers.map(|number| u16::try_from(number?).ok()) {
        [Some(low), Some(high)] => PortRange { low, high },
        _ => PortRange {
            low: 32_768,
            high: 60_999,
        },
    }
}

/// Whether there is a tcp6, and so IPv6 in the kernel.
pub(crate) fn has_ipv6(kernel: &mut impl Kernel, proc_directory: &Path) -> bool {
    let mut path = proc_directory.clone();
    path.put(b"/net/tcp6");
    exists(kernel, &path)
}

/// Whether this network namespace is the first one, that of a host: only that
/// has these settings (net_core_table of net/core/sysctl_net_core.c).
pub(super) fn is_first_namespace(kernel: &mut impl Kernel) -> bool {
    exists(kernel, &Path::from_bytes(b"/proc/sys/net/core/dev_weight"))
}

#[inline(never)]
fn exists(kernel: &mut impl Kernel, path: &Path) -> bool {
    let file = kernel.open(path, Link::Follow);
    file.map(|file| kernel.close(file.descriptor)).is_ok()
}

/// Whether the kernel holds the legacy filter table here. The legacy tool would
/// load and make it where it is only asked for it (iptable_filter.c).
#[inline(never)]
pub(super) fn has_legacy_table(kernel: &mut impl Kernel, family: Family) -> bool {
    let path: &[u8] = match family {
        Family::V4 => b"/proc/self/net/ip_tables_names",
        Family::V6 => b"/proc/self/net/ip6_tables_names",
    };
    let mut buffer = [0; 128];
    let bytes = read_small(kernel, path, &mut buffer);
    split(bytes, b'\n').any(|name| name == b"filter")
}
