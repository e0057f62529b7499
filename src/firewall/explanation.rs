//! What iptables writes on its standard error, understood as far as anything
//! depends on it: its exit status says nearly nothing.

use crate::text::{Text, holds};

/// Bytes kept of what a failing command wrote.
pub const EXPLANATION_MAX: usize = 256;

/// The first words of a failing command, printable bytes only.
pub type Explanation = Text<EXPLANATION_MAX>;

/// Whether it is about `word`: an option of old tools, a match that the kernel
/// lacks.
#[inline(never)]
pub fn is_about(explanation: &Explanation, word: &[u8]) -> bool {
    holds(explanation.as_bytes(), word)
}

/// Whether rights were missing.
pub fn is_forbidden(explanation: &Explanation) -> bool {
    is_about(explanation, b"ermission denied") || is_about(explanation, b"not permitted")
}

/// Whether the program could not be reached for want of a capability.
pub fn lacks_capability(explanation: &Explanation) -> bool {
    is_about(explanation, b"CAP_")
}

/// Whether another program held the xtables lock for too long.
pub fn is_locked_out(explanation: &Explanation) -> bool {
    is_about(explanation, b" lock")
}
