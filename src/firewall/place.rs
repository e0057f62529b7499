//! Where blocks can stand: in the filter table of either family, in either
//! flavour of iptables, or in the sets of our own table of nf_tables.

use crate::address::Family;
use crate::label::label;

/// What holds the blocks of a place, as `--list` calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The filter table of nf_tables.
    IptablesNft,
    /// The older filter table.
    IptablesLegacy,
    /// The sets.
    Nft,
}

label!(
    Backend,
    "backend",
    0,
    ["iptables-nft", "iptables-legacy", "nft"]
);

/// A table of the kernel that holds blocks. First the one that is all zero
/// bytes in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The filter table that the host's `iptables` reaches.
    Ipv4,
    /// That of its `ip6tables`.
    Ipv6,
    /// The filter table of the flavour beside that `iptables`. Blocks found
    /// there stay until they end; new ones come to it only while its chain is
    /// the only one.
    OtherIpv4,
    /// That beside `ip6tables`.
    OtherIpv6,
    /// The table of nf_tables with a set for each kind of source.
    Sets,
}

impl Place {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// All of them: of each flavour that of IPv4 first.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Ipv4,
        Self::Ipv6,
        Self::OtherIpv4,
        Self::OtherIpv6,
        Self::Sets,
    ];

    /// The table of `iptables` or `ip6tables`, whatever its flavour.
    pub const fn preferred(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ipv4,
            Family::V6 => Self::Ipv6,
        }
    }

    /// The table of the other flavour.
    pub const fn other(family: Family) -> Self {
        match family {
            Family::V4 => Self::OtherIpv4,
            Family::V6 => Self::OtherIpv6,
        }
    }

    /// Both chains of a family.
    pub const fn chains(family: Family) -> [Self; 2] {
        [Self::preferred(family), Self::other(family)]
    }

    /// Whether it is a filter table of the flavour beside the preferred one.
    pub const fn is_other(self) -> bool {
        matches!(self, Self::OtherIpv4 | Self::OtherIpv6)
    }

    /// Whose sources it holds, if not those of both families.
    #[inline(never)]
    pub const fn family(self) -> Option<Family> {
        match self {
            Self::Ipv4 | Self::OtherIpv4 => Some(Family::V4),
            Self::Ipv6 | Self::OtherIpv6 => Some(Family::V6),
            Self::Sets => None,
        }
    }

    /// Whether it holds sources of this family.
    pub fn holds(self, family: Family) -> bool {
        self.family().is_none_or(|own| own == family)
    }
}

/// One value for each place. Found out of line: it is asked for everywhere, and
/// half a kilobyte larger otherwise.
pub struct PerPlace<T>([T; Place::COUNT]);

impl<T> PerPlace<T> {
    /// In the order of `Place::ALL`.
    pub const fn new(values: [T; Place::COUNT]) -> Self {
        Self(values)
    }

    #[inline(never)]
    pub fn get(&self, place: Place) -> &T {
        let [first, others @ ..] = &self.0;
        let others_index = (place as usize).wrapping_sub(1);
        others.get(others_index).unwrap_or(first)
    }

    /// The same for one caller, inline.
    pub fn find_mut(&mut self, place: Place) -> Option<&mut T> {
        self.0.get_mut(place as usize)
    }

    #[inline(never)]
    pub fn get_mut(&mut self, place: Place) -> &mut T {
        let [first, others @ ..] = &mut self.0;
        let others_index = (place as usize).wrapping_sub(1);
        others.get_mut(others_index).unwrap_or(first)
    }
}
