//! Instants, durations and calendar time. Time is an argument everywhere; only
//! `kernel.rs` implementations read clocks.
//!
//! What saturates or divides is called: a copy at each place costs more.

use core::num::NonZeroU64;

use crate::text::{TextView, parse_decimal};

/// A length of time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration {
    nanoseconds: u64,
}

impl Duration {
    /// No time at all.
    pub const ZERO: Self = Self { nanoseconds: 0 };

    /// A length in nanoseconds.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self { nanoseconds }
    }

    /// A length in milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self {
            nanoseconds: milliseconds.saturating_mul(1_000_000),
        }
    }

    /// A length in seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self {
            nanoseconds: seconds.saturating_mul(1_000_000_000),
        }
    }

    /// Nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.nanoseconds
    }

    /// Whole milliseconds, rounded up so that a sleep never ends early.
    pub const fn as_millis_rounded_up(self) -> u64 {
        self.nanoseconds.div_ceil(1_000_000)
    }

    /// Whole seconds, rounded up.
    #[inline(never)]
    pub const fn as_secs_rounded_up(self) -> u64 {
        self.nanoseconds.div_ceil(1_000_000_000)
    }

    /// The sum, at most what fits.
    #[inline(never)]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self {
            nanoseconds: self.nanoseconds.saturating_add(other.nanoseconds),
        }
    }

    /// The difference, at least zero.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self {
            nanoseconds: self.nanoseconds.saturating_sub(other.nanoseconds),
        }
    }

    /// `factor` times as long, at most what fits.
    #[inline(never)]
    pub const fn saturating_mul(self, factor: u64) -> Self {
        Self {
            nanoseconds: self.nanoseconds.saturating_mul(factor),
        }
    }

    /// Parses `10s`, `100ms`, `5m`, `1h`, `7d`; a bare number means seconds.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digit_count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, unit) = text.split_at_checked(digit_count)?;
        let milliseconds = match unit {
            b"ms" => 1,
            b"" => 1_000,
            [letter] => UNITS.iter().find(|unit| unit.0 == *letter)?.1,
            _ => return None,
        };
        let nanoseconds = parse_decimal(digits)?
            .checked_mul(milliseconds.into())?
            .checked_mul(1_000_000)?;
        Some(Self { nanoseconds })
    }

    /// Appends the length in the largest unit that divides it: `10m`, `90s`,
    /// `250ms`. Below a millisecond it rounds down.
    pub fn write(self, out: &mut TextView) {
        let milliseconds = self.nanoseconds / 1_000_000;
        for &(letter, length) in &UNITS {
            let (length, is_smallest) = (u64::from(length), letter == b's');
            if milliseconds.checked_rem(length) == Some(0) && (milliseconds > 0 || is_smallest) {
                out.put_decimal(milliseconds.checked_div(length).unwrap_or(0));
                return out.put_byte(letter);
            }
        }
        out.put_decimal(milliseconds);
        out.put(b"ms");
    }
}

/// What lengths are written in, and how many milliseconds that is.
const UNITS: [(u8, u32); 4] = [
    (b'd', 86_400_000),
    (b'h', 3_600_000),
    (b'm', 60_000),
    (b's', 1_000),
];

/// A point on CLOCK_BOOTTIME (clock_gettime(2)): monotonic, runs on in suspend.
/// Never zero, so that an `Option` of it is as small, and `None` all zero bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant {
    nanoseconds: NonZeroU64,
}

impl Instant {
    /// A point in nanoseconds since boot; the moment of boot is the first one.
    pub const fn from_nanos(nanoseconds: u64) -> Self {
        Self {
            nanoseconds: match NonZeroU64::new(nanoseconds) {
                Some(nanoseconds) => nanoseconds,
                None => NonZeroU64::MIN,
            },
        }
    }

    /// A point in whole seconds since boot.
    #[inline(never)]
    pub const fn from_secs(seconds: u64) -> Self {
        Self::from_nanos(seconds.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.nanoseconds.get()
    }

    /// Whole seconds since boot, rounded down.
    pub const fn as_secs(self) -> u64 {
        self.as_nanos() / 1_000_000_000
    }

    /// Whole seconds since boot, rounded up: ends of blocks never come early.
    pub const fn as_secs_rounded_up(self) -> u64 {
        Duration::from_nanos(self.as_nanos()).as_secs_rounded_up()
    }

    /// The time since `earlier`, zero if that lies ahead.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.as_nanos().saturating_sub(earlier.as_nanos()))
    }

    /// The time until `later`, zero if that has passed.
    pub const fn until(self, later: Self) -> Duration {
        later.since(self)
    }

    /// The point `length` later.
    #[inline(never)]
    pub const fn after(self, length: Duration) -> Self {
        Self {
            nanoseconds: self.nanoseconds.saturating_add(length.as_nanos()),
        }
    }

    /// The point `length` earlier, boot at the earliest.
    #[cfg(test)]
    pub const fn before(self, length: Duration) -> Self {
        Self::from_nanos(self.as_nanos().saturating_sub(length.as_nanos()))
    }

    /// Whether that has come; what has no deadline never comes.
    pub fn reaches(self, deadline: Option<Self>) -> bool {
        ahead(Some(self)) >= ahead(deadline)
    }

    /// Whether a wait until then is over, or there is none.
    pub fn is_past(self, wait: Option<Self>) -> bool {
        wait.is_none_or(|wait| self >= wait)
    }

    /// The value, once a wait until then is over.
    pub fn once_past<T>(self, wait: Option<Self>, value: Option<T>) -> Option<T> {
        if self.is_past(wait) { value } else { None }
    }

    /// What of a wait until then lies ahead: its end.
    pub fn end_of(self, wait: Option<Self>) -> Option<Self> {
        if self.is_past(wait) { None } else { wait }
    }

    /// This, or that if it is later.
    #[inline(never)]
    pub fn or_later(self, other: Option<Self>) -> Self {
        match other {
            Some(other) if other > self => other,
            _ => self,
        }
    }

    /// Whether less than `length` has passed since then; not where there is no
    /// such moment.
    #[inline(never)]
    pub fn is_within(self, length: Duration, then: Option<Self>) -> bool {
        then.is_some_and(|then| self.since(then) < length)
    }
}

/// The nearer of two deadlines.
#[inline(never)]
pub fn nearest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    if ahead(one) <= ahead(other) {
        one
    } else {
        other
    }
}

/// How far ahead of boot that is; `None` lies ahead of all else. No branch: zero
/// less one wraps around.
fn ahead(deadline: Option<Instant>) -> u64 {
    deadline.map_or(u64::MAX, |instant| instant.as_nanos().wrapping_sub(1))
}

/// The same of the past: `None` lies before all else.
pub fn order(instant: Option<Instant>) -> u64 {
    instant.map_or(0, Instant::as_nanos)
}

const _: () = assert!(size_of::<Option<Instant>>() == size_of::<u64>());

/// Calendar time in the Gregorian calendar, as a count of seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    seconds: i64,
}

/// A day in human numbers.
#[derive(Debug, PartialEq, Eq)]
pub struct Date {
    /// The year, such as 2021.
    pub year: u64,
    /// 1 to 12.
    pub month: u64,
    /// 1 to 31.
    pub day: u64,
}

impl Calendar {
    /// So many seconds after the beginning of 1970.
    pub const fn at(seconds: i64) -> Self {
        Self { seconds }
    }

    /// The day.
    #[inline(never)]
    pub fn date(self) -> Date {
        let days = self.seconds.div_euclid(86_400) as i32;
        // No later than it is, and hardly earlier.
        let mut year = 1_969 + days / 366;
        while days_until(year + 1, 1) <= days {
            year += 1;
        }
        let mut month = 1;
        while days_until(year, month + 1) <= days {
            month += 1;
        }
        Date {
            year: year as u64,
            month: month as u64,
            day: (days - days_until(year, month) + 1) as u64,
        }
    }

    /// Appends `2021-11-01 21:11:53`.
    pub fn write(self, out: &mut TextView) {
        let Date { year, month, day } = self.date();
        out.put_decimal_padded(year, 4);
        put_part(out, b'-', month);
        put_part(out, b'-', day);
        self.write_time(out);
    }

    /// Appends ` 21:11:53`.
    #[inline(never)]
    pub fn write_time(self, out: &mut TextView) {
        let second = self.seconds.rem_euclid(86_400) as u32;
        put_part(out, b' ', (second / 3_600).into());
        put_part(out, b':', (second / 60 % 60).into());
        put_part(out, b':', (second % 60).into());
    }
}

/// Days from 1970 to the first of a month, of which 13 is the next January.
/// Years are counted from March, so that leap days end them.
#[inline(never)]
pub fn days_until(year: i32, month: i32) -> i32 {
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let (year, month) = (year as u32, month as u32);
    let century = year / 100;
    let leap_days = year / 4 - century + century / 4;
    (year * 365 + leap_days + (153 * month + 2) / 5) as i32 - 719_468
}

/// Two digits behind what separates them from those before.
#[inline(never)]
fn put_part(out: &mut TextView, separator: u8, number: u64) {
    out.put_byte(separator);
    out.put_decimal_padded(number, 2);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;

    fn written(duration: Duration) -> std::vec::Vec<u8> {
        let mut text: Text<32> = Text::new();
        duration.write(&mut text);
        text.as_bytes().to_vec()
    }

    #[test]
    fn durations_parse_and_print() {
        // Text, milliseconds, and how they are written.
        for (text, milliseconds, expected) in [
            ("10", 10_000, "10s"),
            ("10s", 10_000, "10s"),
            ("100ms", 100, "100ms"),
            ("250ms", 250, "250ms"),
            ("90", 90_000, "90s"),
            ("5m", 300_000, "5m"),
            ("600", 600_000, "10m"),
            ("1h", 3_600_000, "1h"),
            ("7d", 604_800_000, "7d"),
            ("0", 0, "0s"),
        ] {
            let duration = Duration::parse(text.as_bytes()).unwrap();
            assert_eq!(duration, Duration::from_millis(milliseconds), "{text}");
            assert_eq!(written(duration), expected.as_bytes(), "{text}");
        }
        for text in [
            "",
            "s",
            "-1",
            "1.5s",
            "1 s",
            "1w",
            "99999999999999999999d",
            "10S",
        ] {
            assert_eq!(Duration::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn calendar_prints_with_padding() {
        for (seconds, expected) in [
            (1_635_800_463, "2021-11-01 21:01:03"),
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (-86_401, "1969-12-30 23:59:59"),
        ] {
            let mut text: Text<32> = Text::new();
            Calendar::at(seconds).write(&mut text);
            assert_eq!(text.as_bytes(), expected.as_bytes());
        }
    }

    #[test]
    fn days_are_those_of_the_gregorian_calendar() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..200_000_i64 {
            let at = Calendar::at(days * 86_400 + 3_600 * 5 + 61);
            assert_eq!(at.date(), Date { year, month, day });
            let mut time: Text<32> = Text::new();
            at.write_time(&mut time);
            assert_eq!(time.as_bytes(), b" 05:01:01");
            let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
            #[rustfmt::skip]
            let lengths = [31, 28 + u64::from(is_leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            day += 1;
            if day > lengths[month as usize - 1] {
                (day, month) = (1, month + 1);
            }
            if month == 13 {
                (month, year) = (1, year + 1);
            }
        }
    }

    #[test]
    fn rounding_goes_up() {
        assert_eq!(Duration::from_nanos(1).as_millis_rounded_up(), 1);
        assert_eq!(Instant::from_nanos(1_000_000_001).as_secs_rounded_up(), 2);
        assert_eq!(Instant::from_nanos(1_999_999_999).as_secs(), 1);
        let boot = Instant::from_nanos(0);
        assert_eq!(boot.since(Instant::from_secs(5)), Duration::ZERO);
        assert_eq!(Instant::from_secs(5).before(Duration::from_secs(6)), boot);
    }

    #[test]
    fn what_has_no_deadline_never_comes_and_no_wait_is_over() {
        let [early, late] = [1, 2].map(Instant::from_secs);
        assert!(late.reaches(Some(early)) && late.reaches(Some(late)));
        assert!(!early.reaches(Some(late)) && !late.reaches(None));
        assert!(late.is_past(Some(late)) && late.is_past(None));
        assert!(!early.is_past(Some(late)));
        assert_eq!(nearest(Some(late), Some(early)), Some(early));
        assert_eq!(nearest(None, Some(late)), Some(late));
        assert_eq!(nearest(Some(late), None), Some(late));
        assert_eq!(nearest(None, None), None);
        assert!(order(None) < order(Some(early)) && order(Some(early)) < order(Some(late)));
        assert_eq!(early.or_later(None), early);
        assert_eq!(early.or_later(Some(late)), late);
        assert_eq!(late.or_later(Some(early)), late);
        let [short, long] = [1, 2].map(Duration::from_secs);
        assert!(late.is_within(long, Some(early)) && !late.is_within(short, Some(early)));
        assert!(early.is_within(short, Some(late)) && !early.is_within(short, None));
    }
}
