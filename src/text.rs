//! Bounded text without core::fmt: bytes, numbers and padding appended to a text
//! of fixed capacity.

use core::ops::{Deref, DerefMut};

/// Text of at most `N` bytes.
pub type Text<const N: usize> = Bounded<[u8; N]>;

/// A text of whatever length it can hold: what writes and reads text takes
/// this one, so that there is one copy of its code for all lengths.
pub type TextView = Bounded<[u8]>;

/// Text in bytes of its own. Appending never fails: a full text drops the rest
/// and remembers that it did. Its length stands before the bytes, so
/// that a long text of few bytes dirties one page.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct Bounded<B: ?Sized> {
    length: usize,
    truncated: bool,
    bytes: B,
}

impl<const N: usize> Text<N> {
    /// An empty text; all its bytes are zero, so that statics stay in .bss.
    pub const fn new() -> Self {
        Self {
            length: 0,
            truncated: false,
            bytes: [0; N],
        }
    }

    /// A text of `bytes`, cut at `N`.
    #[inline(never)]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut text = Self::new();
        text.put(bytes);
        text
    }
}

impl<const N: usize> PartialEq for Text<N> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes() && self.truncated == other.truncated
    }
}

impl<const N: usize> Eq for Text<N> {}

impl<const N: usize> Deref for Text<N> {
    type Target = TextView;

    fn deref(&self) -> &TextView {
        self
    }
}

impl<const N: usize> DerefMut for Text<N> {
    fn deref_mut(&mut self) -> &mut TextView {
        self
    }
}

impl TextView {
    /// Appends `bytes` as they are.
    #[inline(never)]
    pub fn put(&mut self, bytes: &[u8]) {
        let free = self.bytes.iter_mut().skip(self.length);
        let mut count = 0;
        for (to, from) in free.zip(bytes) {
            *to = *from;
            count += 1;
        }
        self.length += count;
        self.truncated |= count < bytes.len();
    }

    /// Appends once more what stands from `start` on up to the next blank, with
    /// that.
    pub fn put_word_again(&mut self, start: usize) {
        for at in start..self.length {
            let byte = self.bytes.get(at).copied().unwrap_or_default();
            self.put_byte(byte);
            if byte == b' ' {
                return;
            }
        }
    }

    /// Appends one byte.
    #[inline(never)]
    pub fn put_byte(&mut self, byte: u8) {
        match self.bytes.get_mut(self.length) {
            Some(free) => {
                *free = byte;
                self.length += 1;
            }
            None => self.truncated = true,
        }
    }

    /// Appends `number` in decimal.
    #[inline(never)]
    pub fn put_decimal(&mut self, number: u64) {
        self.put_decimal_padded(number, 1);
    }

    /// Appends `number` in decimal with leading zeros up to `width` digits
    /// (at most 20).
    #[inline(never)]
    pub fn put_decimal_padded(&mut self, number: u64, width: usize) {
        self.put_digits(number, width, 10);
    }

    /// Appends `number` in lower-case hexadecimal with leading zeros up to
    /// `width` digits (at most 16).
    #[inline(never)]
    pub fn put_hex(&mut self, number: u64, width: usize) {
        self.put_digits(number, width, 16);
    }

    #[inline(never)]
    fn put_digits(&mut self, number: u64, width: usize, base: u64) {
        let mut digits = [0; 20];
        let mut start = digits.len();
        let mut rest = number;
        for digit in digits.iter_mut().rev() {
            if rest == 0 && 20 - start >= width {
                break;
            }
            *digit = match rest.checked_rem(base).unwrap_or(0) as u8 {
                value @ 0..=9 => b'0' + value,
                value => b'a' + value - 10,
            };
            rest = rest.checked_div(base).unwrap_or(0);
            start -= 1;
        }
        self.put(digits.get(start..).unwrap_or_default());
    }

    /// Appends a count of nanoseconds as seconds with up to nine decimals and
    /// no trailing zeros: `1500000000` becomes `1.5`.
    #[inline(never)]
    pub fn put_seconds(&mut self, nanoseconds: u64) {
        self.put_decimal(nanoseconds / 1_000_000_000);
        let mut fraction = (nanoseconds % 1_000_000_000) as u32;
        if fraction == 0 {
            return;
        }
        let mut width = 9;
        while fraction % 10 == 0 {
            fraction /= 10;
            width -= 1;
        }
        self.put_byte(b'.');
        self.put_decimal_padded(fraction.into(), width);
    }

    /// Appends `bytes` with spaces before them up to `width` bytes.
    pub fn put_right(&mut self, bytes: &[u8], width: usize) {
        for _ in bytes.len()..width {
            self.put_byte(b' ');
        }
        self.put(bytes);
    }

    /// Appends what another program wrote, as far as it is printable ASCII,
    /// with one blank for whatever stands between.
    pub fn put_printable(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.room() == 0 {
                return;
            }
            let is_printable = (b' '..=b'~').contains(byte);
            if is_printable || !self.as_bytes().ends_with(b" ") {
                self.put_byte(if is_printable { *byte } else { b' ' });
            }
        }
    }

    /// Sets `bytes` over those that stand from `offset` on, as far as they are.
    #[inline(never)]
    pub fn overwrite(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..self.length).zip(bytes) {
            if let Some(standing) = self.bytes.get_mut(at) {
                *standing = *byte;
            }
        }
    }

    /// The bytes appended so far.
    #[inline(never)]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }

    /// Whether bytes were dropped since the last `clear`.
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// Whether nothing was appended since the last `clear`.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        self.bytes.len().saturating_sub(self.length)
    }

    /// Empties the text.
    #[inline(never)]
    pub fn clear(&mut self) {
        self.length = 0;
        self.truncated = false;
    }

    /// The same, save for the first `length` bytes, whatever they are.
    pub fn clear_behind(&mut self, length: usize) {
        self.clear();
        self.length = length.min(self.bytes.len());
    }

    /// Removes the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.length);
        // Nothing to move where nothing is left: the usual case.
        for at in count..self.length {
            let byte = self.bytes.get(at).copied().unwrap_or_default();
            if let Some(to) = self.bytes.get_mut(at - count) {
                *to = byte;
            }
        }
        self.length -= count;
    }
}

/// Whether two words are the same but for the case of ASCII letters. The one
/// of core looks at many letters at once, which takes more code.
#[inline(never)]
pub fn eq_ignore_case(one: &[u8], other: &[u8]) -> bool {
    let mut pairs = one.iter().zip(other);
    one.len() == other.len() && pairs.all(|(one, other)| one.eq_ignore_ascii_case(other))
}

/// What stands between such bytes, one after the other, as `split` of core has
/// it, whose code is copied to each place that calls it.
pub fn split(bytes: &[u8], byte: u8) -> Split<'_> {
    Split {
        rest: Some(bytes),
        byte,
    }
}

/// See `split`.
#[derive(Clone)]
pub struct Split<'a> {
    /// `None` behind the last part.
    rest: Option<&'a [u8]>,
    byte: u8,
}

impl<'a> Iterator for Split<'a> {
    type Item = &'a [u8];

    #[inline(never)]
    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let part = before(rest, self.byte);
        self.rest = rest.get(part.len() + 1..);
        Some(part)
    }
}

/// Which of some words, with bars between, is the same as this one.
#[inline(never)]
pub fn place(words: &[u8], word: &[u8], is_same: fn(&[u8], &[u8]) -> bool) -> Option<usize> {
    split(words, b'|').position(|one| is_same(one, word))
}

/// Fills in what stands between such bytes, as far as there is room.
#[inline(never)]
pub fn split_into<'a>(fields: &mut [&'a [u8]], bytes: &'a [u8], byte: u8) {
    for (field, part) in fields.iter_mut().zip(split(bytes, byte)) {
        *field = part;
    }
}

/// Whether there is such a byte. Not `contains`, which searches long texts word
/// by word, at each place anew.
#[inline(never)]
pub fn has_byte(bytes: &[u8], byte: u8) -> bool {
    before(bytes, byte).len() < bytes.len()
}

/// Whether `word`, which is not empty, stands in a text.
#[inline(never)]
pub fn holds(bytes: &[u8], word: &[u8]) -> bool {
    let mut windows = bytes.windows(word.len().max(1));
    windows.any(|window| window == word)
}

/// What stands before the first such byte: all where there is none.
#[inline(never)]
pub fn before(bytes: &[u8], byte: u8) -> &[u8] {
    let length = bytes.iter().take_while(|one| **one != byte).count();
    bytes.get(..length).unwrap_or_default()
}

/// The first `length` of the bytes, or all of them.
pub fn head(bytes: &[u8], length: usize) -> &[u8] {
    bytes.get(..length.min(bytes.len())).unwrap_or_default()
}

/// That, and what stands behind it: nothing where there is none.
#[inline(never)]
pub fn split_once(bytes: &[u8], byte: u8) -> (&[u8], &[u8]) {
    let before = before(bytes, byte);
    (before, bytes.get(before.len() + 1..).unwrap_or_default())
}

/// The first word up to a blank or what is no text, and what stands behind it.
#[inline(never)]
pub fn split_word(bytes: &[u8]) -> (&[u8], &[u8]) {
    let bytes = trim(bytes);
    let length = bytes.iter().take_while(|byte| **byte > b' ').count();
    bytes.split_at_checked(length).unwrap_or_default()
}

/// The value of decimal `digits` (at least one, no sign), or `None`.
#[inline(never)]
pub fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let mut number: u64 = 0;
    for byte in digits {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
    }
    Some(number)
}

/// `bytes` without blanks (space, tab, carriage return) at either end.
#[inline(never)]
pub fn trim(bytes: &[u8]) -> &[u8] {
    let mut rest = bytes;
    while let [b' ' | b'\t' | b'\r', tail @ ..] = rest {
        rest = tail;
    }
    while let [head @ .., b' ' | b'\t' | b'\r'] = rest {
        rest = head;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(build: impl Fn(&mut Text<64>)) -> std::string::String {
        let mut text = Text::new();
        build(&mut text);
        std::string::String::from_utf8(text.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn numbers() {
        assert_eq!(text(|t| t.put_decimal(0)), "0");
        assert_eq!(text(|t| t.put_decimal(u64::MAX)), "18446744073709551615");
        assert_eq!(text(|t| t.put_decimal_padded(7, 2)), "07");
        assert_eq!(text(|t| t.put_hex(0xbeef, 8)), "0000beef");
        assert_eq!(text(|t| t.put_hex(0, 1)), "0");
        assert_eq!(text(|t| t.put_seconds(1_500_000_000)), "1.5");
        assert_eq!(text(|t| t.put_seconds(12_345)), "0.000012345");
        assert_eq!(text(|t| t.put_seconds(3_000_000_000)), "3");
        assert_eq!(text(|t| t.put_right(b"ab", 5)), "   ab");
        let again = |start| {
            text(|t| {
                t.put(b"a{b} 1\n");
                t.put_word_again(start);
            })
        };
        assert_eq!(
            (again(1).as_str(), again(5).as_str()),
            ("a{b} 1\n{b} ", "a{b} 1\n1\n")
        );
        assert_eq!(parse_decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse_decimal(b"18446744073709551616"), None);
        assert_eq!(parse_decimal(b""), None);
        assert_eq!(parse_decimal(b"-1"), None);
    }

    #[test]
    fn full_text_drops_and_says_so() {
        let mut text: Text<4> = Text::new();
        text.put(b"abc");
        assert!(!text.is_truncated());
        text.put(b"de");
        assert_eq!(text.as_bytes(), b"abcd");
        assert!(text.is_truncated());
        text.consume(3);
        assert_eq!(text.as_bytes(), b"d");
        text.consume(9);
        assert!(text.is_empty());
    }

    #[test]
    fn foreign_words_become_printable() {
        let mut text: Text<12> = Text::new();
        text.put_printable(b"a\x1b[2J\r\n\tb");
        assert_eq!(text.as_bytes(), b"a [2J b");
        text.put_printable("\u{e4}cdefghi".as_bytes());
        assert_eq!(text.as_bytes(), b"a [2J b cdef");
        assert!(!text.is_truncated());
    }
}
