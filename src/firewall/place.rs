//! Where blocks can stand: in the filter table of either family, in either
//! flavour of iptables.

use crate::address::Family;

/// One filter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// That of `iptables` or that of `ip6tables`.
    pub family: Family,
    /// Not that of the host's `iptables`, but of the flavour beside it. Blocks
    /// found there stay until they end; new ones come to it only while its
    /// chain is the only one.
    pub is_other: bool,
}

impl Place {
    /// How many there are.
    pub const COUNT: usize = 4;

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self::at)
    }

    /// The one with this number, of which bits beyond `COUNT` do not matter:
    /// the preferred tables come first, of each flavour that of IPv4.
    pub const fn at(index: usize) -> Self {
        Self {
            family: if index & 1 == 0 {
                Family::V4
            } else {
                Family::V6
            },
            is_other: index & 2 != 0,
        }
    }

    /// The table of `iptables` or `ip6tables`, whatever its flavour.
    pub const fn preferred(family: Family) -> Self {
        Self {
            family,
            is_other: false,
        }
    }

    /// The table of the other flavour.
    pub const fn other(family: Family) -> Self {
        Self::preferred(family).beside()
    }

    /// Its number.
    const fn index(self) -> usize {
        self.family as usize + 2 * self.is_other as usize
    }

    /// The same family's table of the other flavour.
    pub const fn beside(self) -> Self {
        Self {
            is_other: !self.is_other,
            ..self
        }
    }
}

/// One value for each place. Found out of line: it is asked for everywhere, and
/// half a kilobyte larger otherwise.
pub struct PerPlace<T>([T; 4]);

impl<T> PerPlace<T> {
    /// In the order of `Place::all`.
    pub const fn new(values: [T; 4]) -> Self {
        Self(values)
    }

    #[inline(never)]
    pub fn get(&self, place: Place) -> &T {
        let [first, others @ ..] = &self.0;
        let others_index = place.index().wrapping_sub(1);
        others.get(others_index).unwrap_or(first)
    }

    #[inline(never)]
    pub fn get_mut(&mut self, place: Place) -> &mut T {
        let [first, others @ ..] = &mut self.0;
        let others_index = place.index().wrapping_sub(1);
        others.get_mut(others_index).unwrap_or(first)
    }
}
