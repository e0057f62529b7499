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
            b"" | b"s" => 1_000,
            b"m" => 60_000,
            b"h" => 3_600_000,
            b"d" => 86_400_000,
            _ => return None,
        };
        let nanoseconds = parse_decimal(digits)?
            .checked_mul(milliseconds)?
            .checked_mul(1_000_000)?;
        Some(Self { nanoseconds })
    }

    /// Appends the length in the largest unit that divides it: `10m`, `90s`,
    /// `250ms`. Below a millisecond it rounds down.
    pub fn write(self, out: &mut TextView) {
        let mut count = self.nanoseconds / 1_000_000;
        if count == 0 {
            return out.put(b"0s");
        }
        // From each unit to the next larger one.
        let mut unit: &[u8] = b"ms";
        for (factor, larger) in [1_000, 60, 60, 24].into_iter().zip(b"smhd".chunks(1)) {
            if count.checked_rem(factor) != Some(0) {
                break;
            }
            (count, unit) = (count.checked_div(factor).unwrap_or(0), larger);
        }
        out.put_decimal(count);
        out.put(unit);
    }
}

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

/// Calendar time, already in human numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calendar {
    /// The year, such as 2021.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

impl Calendar {
    /// That of a count of seconds since 1970 in the Gregorian calendar, by
    /// counting from 1 March of the year 0, so that leap days end a year and
    /// 400 years (146,097 days) repeat.
    #[inline(never)]
    pub fn at(seconds: i64) -> Self {
        let seconds = (seconds + 719_468 * 86_400) as u64;
        let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
        let day_of_era = days % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        let year = days / 146_097 * 400 + year_of_era + u64::from(month < 3);
        Self {
            year: year as u16,
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            hour: (second_of_day / 3_600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
        }
    }

    /// Appends `2021-11-01 21:11:53`.
    pub fn write(self, out: &mut TextView) {
        out.put_decimal_padded(u64::from(self.year), 4);
        put_part(out, b'-', self.month);
        put_part(out, b'-', self.day);
        self.write_time(out);
    }

    /// Appends ` 21:11:53`.
    pub fn write_time(self, out: &mut TextView) {
        put_part(out, b' ', self.hour);
        put_part(out, b':', self.minute);
        put_part(out, b':', self.second);
    }
}

/// Two digits behind what separates them from those before.
#[inline(never)]
fn put_part(out: &mut TextView, separator: u8, number: u8) {
    out.put_byte(separator);
    out.put_decimal_padded(u64::from(number), 2);
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
        let calendar = Calendar {
            year: 2021,
            month: 11,
            day: 1,
            hour: 21,
            minute: 1,
            second: 3,
        };
        let mut text: Text<32> = Text::new();
        calendar.write(&mut text);
        assert_eq!(text.as_bytes(), b"2021-11-01 21:01:03");
    }

    #[test]
    fn days_are_those_of_the_gregorian_calendar() {
        let (mut year, mut month, mut day) = (1970_u16, 1_u8, 1_u8);
        for days in 0..200_000_i64 {
            let at = Calendar::at(days * 86_400 + 3_600 * 5 + 61);
            assert_eq!((at.year, at.month, at.day), (year, month, day));
            assert_eq!((at.hour, at.minute, at.second), (5, 1, 1));
            let is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
            #[rustfmt::skip]
            let lengths = [31, 28 + u8::from(is_leap), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            day += 1;
            if day > lengths[usize::from(month) - 1] {
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
