//! Where blocks can stand: in the filter table of either family, in either
//! flavour of iptables.

/// One filter table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// That of ip6tables.
    pub is_ipv6: bool,
    /// Not that of the host's `iptables`, but of the flavour beside it. Blocks
    /// found there stay until they end; new ones come to it only while its
    /// chain is the only one.
    pub is_other: bool,
}

impl Place {
    pub const ALL: [Self; 4] = [
        Self::preferred(false),
        Self::preferred(true),
        Self::preferred(false).beside(),
        Self::preferred(true).beside(),
    ];

    /// The table of `iptables` or `ip6tables`, whatever its flavour.
    pub const fn preferred(is_ipv6: bool) -> Self {
        Self {
            is_ipv6,
            is_other: false,
        }
    }

    /// The same family's table of the other flavour.
    pub const fn beside(self) -> Self {
        Self {
            is_other: !self.is_other,
            ..self
        }
    }
}

/// One value for each place.
pub struct PerPlace<T>([T; 4]);

impl<T> PerPlace<T> {
    /// In the order of `Place::ALL`.
    pub const fn new(values: [T; 4]) -> Self {
        Self(values)
    }

    pub fn get(&self, place: Place) -> &T {
        let [v4, v6, other_v4, other_v6] = &self.0;
        match (place.is_other, place.is_ipv6) {
            (false, false) => v4,
            (false, true) => v6,
            (true, false) => other_v4,
            (true, true) => other_v6,
        }
    }

    pub fn get_mut(&mut self, place: Place) -> &mut T {
        let [v4, v6, other_v4, other_v6] = &mut self.0;
        match (place.is_other, place.is_ipv6) {
            (false, false) => v4,
            (false, true) => v6,
            (true, false) => other_v4,
            (true, true) => other_v6,
        }
    }
}
