//! Values of metrics' labels: the type that a stage uses for a notion is the
//! one that has its label.

use crate::text::{Split, split};

/// The values of one label: all of them are exposed, from zero on.
pub trait Label: Copy {
    /// The label's name and its values, in the order of `index`, with a blank
    /// between: one text, where an array would be addresses that the loader
    /// writes into memory of our own.
    const WORDS: &'static str;
    /// How many values there are.
    const COUNT: usize;

    /// The place of this value among the values; what lies behind is not counted.
    fn index(self) -> usize;

    /// This value; empty where it is not counted.
    fn value(self) -> &'static [u8] {
        nth(Self::WORDS, self.index() + 1)
    }

    /// The label's values.
    #[cfg(test)]
    fn values() -> impl Iterator<Item = &'static [u8]> {
        words(Self::WORDS).skip(1)
    }
}

/// The words of a text with one blank between.
fn words(text: &'static str) -> Split<'static> {
    split(text.as_bytes(), b' ')
}

/// One of them; empty where there is none.
#[inline(never)]
pub fn nth(text: &'static str, index: usize) -> &'static [u8] {
    words(text).nth(index).unwrap_or_default()
}

/// Implements the label of an enum whose first variants, numbered from `$first`
/// on, are its values.
macro_rules! label {
    ($name:ident, $label:literal, $first:literal, [$($value:literal),+ $(,)?]) => {
        impl crate::label::Label for $name {
            const WORDS: &'static str = concat!($label, $(" ", $value,)+);
            const COUNT: usize = [$($value),+].len();

            fn index(self) -> usize {
                (self as usize).wrapping_sub($first)
            }
        }
    };
}

pub(crate) use label;
