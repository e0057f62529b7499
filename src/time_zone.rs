//! How far local time is ahead of UTC: TZ as POSIX.1 writes it, and the files
//! of the time zone database, tzfile(5). Nothing is kept but their bytes, which
//! are read anew for each time: that is short work, and few lines carry one.

use crate::text::{before, split_once};
use crate::time::Calendar;

/// A file begins with it, and then with its version.
const MAGIC: &[u8] = b"TZif";
const VERSION_AT: usize = MAGIC.len();
const COUNTS_AT: usize = 20;
const HEADER: usize = 44;
/// Bytes of one type of local time: the offset, whether it is summer time, and
/// where its name stands.
const TYPE: usize = 6;

/// Whether TZ is a rule, not the name of a file: a name and an offset. A zone
/// without an offset is UTC.
pub fn is_rule(zone: &[u8]) -> bool {
    let mut rule = Rule(zone);
    let is_named = rule.skip_name();
    let is_utc = matches!(zone, b"UTC" | b"GMT");
    is_utc || is_named && matches!(rule.0, [b'+' | b'-' | b'0'..=b'9', ..])
}

/// Seconds that local time is ahead of UTC, by a rule or by the bytes of a file.
/// What is neither is UTC.
pub fn offset(zone: &[u8], now: i64) -> i64 {
    if zone.starts_with(MAGIC) {
        offset_by_file(zone, now).unwrap_or(0)
    } else {
        Rule(zone).offset(now)
    }
}

/// The first of the two blocks of a file counts time in four bytes. Files before
/// version 2 have no other, and no rule behind.
fn offset_by_file(file: &[u8], now: i64) -> Option<i64> {
    let first = Block::new(file, 4)?;
    if *file.get(VERSION_AT)? < b'2' {
        return first.offset(now, b"");
    }
    let second = Block::new(first.rest, 8)?;
    let rule = before(second.rest.strip_prefix(b"\n")?, b'\n');
    second.offset(now, rule)
}

/// What a block of a file says.
struct Block<'a> {
    /// When local time changes, in seconds since 1970, in as many bytes each.
    changes: &'a [u8],
    width: usize,
    /// The type of local time from each change on.
    kinds: &'a [u8],
    types: &'a [u8],
    /// What stands behind the block.
    rest: &'a [u8],
}

impl<'a> Block<'a> {
    fn new(block: &'a [u8], width: usize) -> Option<Self> {
        let (header, rest) = block.split_at_checked(HEADER)?;
        let mut counts = header.get(COUNTS_AT..)?.chunks_exact(4);
        let mut count = || counts.next().map(|bytes| number(bytes) as usize);
        let (is_utc, is_standard, leaps) = (count()?, count()?, count()?);
        let (changes, types, names) = (count()?, count()?, count()?);
        let (times, rest) = rest.split_at_checked(changes.wrapping_mul(width))?;
        let (kinds, rest) = rest.split_at_checked(changes)?;
        let (types, rest) = rest.split_at_checked(types.wrapping_mul(TYPE))?;
        let leaps = leaps.wrapping_mul(width + 4);
        let unused = names.wrapping_add(leaps).wrapping_add(is_standard);
        Some(Self {
            changes: times,
            width,
            kinds,
            types,
            rest: rest.get(unused.wrapping_add(is_utc)..)?,
        })
    }

    /// After the last change the rule holds, where there is one.
    fn offset(&self, now: i64, rule: &[u8]) -> Option<i64> {
        let mut changes = self.changes.chunks_exact(self.width.max(1));
        let last = changes.rposition(|change| number(change) <= now);
        let passed = last.map_or(0, |last| last + 1);
        if passed == self.kinds.len() && !rule.is_empty() {
            return Some(Rule(rule).offset(now));
        }
        let kind = last.and_then(|last| self.kinds.get(last)).unwrap_or(&0);
        let kind = self.types.chunks_exact(TYPE).nth(usize::from(*kind))?;
        kind.get(..4).map(number)
    }
}

/// Big-endian, with a sign.
#[inline(never)]
fn number(bytes: &[u8]) -> i64 {
    let is_negative = bytes.first().is_some_and(|byte| *byte >= 0x80);
    let number = if is_negative { -1 } else { 0 };
    let append = |number: i64, byte: &u8| number << 8 | i64::from(*byte);
    bytes.iter().fold(number, append)
}

/// What is left to read of a rule, such as `CET-1CEST,M3.5.0,M10.5.0/3`.
struct Rule<'a>(&'a [u8]);

impl Rule<'_> {
    fn offset(mut self, now: i64) -> i64 {
        self.skip_name();
        // POSIX counts what is to be added to local time.
        let standard = -self.time();
        if !self.skip_name() {
            return standard;
        }
        let summer = match self.0 {
            [b',', ..] | [] => standard + 3_600,
            _ => -self.time(),
        };
        let year = i64::from(Calendar::at(now).year);
        let begin = self.change(year) - standard;
        let end = self.change(year) - summer;
        // South of the equator summer begins in the year before.
        let is_summer = if begin < end {
            begin <= now && now < end
        } else {
            now < end || begin <= now
        };
        if is_summer { summer } else { standard }
    }

    #[inline(never)]
    fn take(&mut self, byte: u8) -> bool {
        let rest = self.0.strip_prefix(&[byte]);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// Letters, or anything between `<` and `>`. False: there is none.
    #[inline(never)]
    fn skip_name(&mut self) -> bool {
        if self.take(b'<') {
            self.0 = split_once(self.0, b'>').1;
            return true;
        }
        let letters = self.0.iter().take_while(|byte| byte.is_ascii_alphabetic());
        let length = letters.count();
        self.0 = self.0.get(length..).unwrap_or_default();
        length > 0
    }

    /// Digits; no number of a rule has more than four.
    #[inline(never)]
    fn number(&mut self) -> i64 {
        let mut number = 0;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0 {
            number = (number * 10 + i64::from(*digit - b'0')).min(9_999);
            self.0 = rest;
        }
        number
    }

    /// `-hh:mm:ss` or less, in seconds.
    #[inline(never)]
    fn time(&mut self) -> i64 {
        let is_negative = self.take(b'-');
        self.take(b'+');
        let mut seconds = self.number() * 3_600;
        for unit in [60, 1] {
            if self.take(b':') {
                seconds += self.number() * unit;
            }
        }
        if is_negative { -seconds } else { seconds }
    }

    /// When the clock changes in a year: its local time until then, counted in
    /// seconds as if it were UTC.
    #[inline(never)]
    fn change(&mut self, year: i64) -> i64 {
        self.take(b',');
        let day = if self.take(b'M') {
            self.weekday_of(year)
        } else if self.take(b'J') {
            // 29 February is not counted.
            match self.number() {
                day @ ..60 => days_until(year, 1) + day - 1,
                day => days_until(year, 3) + day - 60,
            }
        } else {
            days_until(year, 1) + self.number()
        };
        let time = if self.take(b'/') { self.time() } else { 7_200 };
        day * 86_400 + time
    }

    /// `month.week.weekday`; week 5 is the last one.
    fn weekday_of(&mut self, year: i64) -> i64 {
        let month = self.number();
        self.take(b'.');
        let week = self.number();
        self.take(b'.');
        let first = days_until(year, month);
        // 1970 began on a Thursday.
        let until_weekday = (self.number() - first - 4).rem_euclid(7);
        let day = first + until_weekday + 7 * (week - 1);
        if day < days_until(year, month + 1) {
            day
        } else {
            day - 7
        }
    }
}

/// Days from 1970 to the first of a month, of which 13 is the next January.
/// Years are counted from March, so that leap days end them.
#[inline(never)]
fn days_until(year: i64, month: i64) -> i64 {
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (153 * month + 2) / 5 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Text;
    use std::process::Command;
    use std::string::String;
    use std::vec::Vec;

    /// What date(1) says of times in a time zone, a line each.
    fn dates(zone: &str, times: &[i64]) -> String {
        let lines: Vec<String> = times.iter().map(|time| format!("@{time}\n")).collect();
        let name = zone.replace('/', "_");
        let file = format!("tcpparser-dates-{}-{name}", std::process::id());
        let file = std::env::temp_dir().join(file);
        std::fs::write(&file, lines.concat()).unwrap();
        let date = Command::new("date")
            .env("TZ", zone)
            .arg("-f")
            .arg(&file)
            .arg("+%Y-%m-%d %H:%M:%S")
            .output()
            .unwrap();
        std::fs::remove_file(&file).unwrap();
        String::from_utf8(date.stdout).unwrap()
    }

    fn assert_agrees_with_date(zone: &str, bytes: &[u8]) {
        let times = times();
        let dates = dates(zone, &times);
        assert_eq!(dates.lines().count(), times.len(), "{zone}");
        for (time, date) in times.into_iter().zip(dates.lines()) {
            let mut text: Text<32> = Text::new();
            Calendar::at(time + offset(bytes, time)).write(&mut text);
            let written = core::str::from_utf8(text.as_bytes()).unwrap();
            assert_eq!(written, date, "{time} in {zone}");
        }
    }

    /// Some second of each day of 80 years, and those about some changes of 2026.
    fn times() -> Vec<i64> {
        let mut times: Vec<i64> = (0..80 * 366)
            .map(|day| day * 86_400 + day % 86_400)
            .collect();
        for change in [1_774_746_000, 1_792_890_000, 1_772_953_200, 1_793_512_800] {
            times.extend(change - 2..change + 2);
        }
        times
    }

    #[test]
    fn rules_agree_with_date() {
        for zone in [
            "UTC0",
            "UTC",
            "XXX-5:30",
            "XXX+5",
            "<+1245>-12:45:30",
            "CET-1CEST,M3.5.0,M10.5.0/3",
            "EST5EDT,M3.2.0,M11.1.0",
            "<-03>3<-02>,M3.5.0/-2,M10.5.0/-1",
            "AEST-10AEDT,M10.1.0,M4.1.0/3",
            "NST3:30NDT2:15,M3.2.0/0:01,M11.1.0/0:01",
            "AAA1BBB,J59/1,J60/25",
            "AAA1BBB,J60,J365",
            "AAA1BBB,58,300/-3:30",
            "AAA-1BBB,M12.5.0,M2.5.6",
        ] {
            assert!(is_rule(zone.as_bytes()), "{zone}");
            assert_agrees_with_date(zone, zone.as_bytes());
        }
    }

    #[test]
    fn files_agree_with_date() {
        let folder = std::path::Path::new("/usr/share/zoneinfo");
        let names = [
            "Europe/Berlin",
            "America/New_York",
            "Africa/Casablanca",
            "Asia/Kolkata",
        ];
        for name in names {
            let Ok(file) = std::fs::read(folder.join(name)) else {
                return;
            };
            assert!(!is_rule(name.as_bytes()));
            assert_agrees_with_date(name, &file);
        }
    }

    /// They stand between the two blocks, in more bytes in the second one. Our
    /// seconds do not count them.
    #[test]
    fn leap_seconds_are_passed_over() {
        let folder = std::path::Path::new("/usr/share/zoneinfo");
        let read = |name: &str| std::fs::read(folder.join(name));
        let names = ["Europe/Berlin", "right/Europe/Berlin"];
        let [Ok(plain), Ok(right)] = names.map(read) else {
            return;
        };
        for time in [1_700_000_000, 1_720_000_000] {
            assert_eq!(offset(&right, time), offset(&plain, time));
        }
    }

    /// Whatever is in a file or in TZ says some time.
    #[test]
    fn hostile_zones() {
        let far = "9".repeat(40);
        for zone in [
            "",
            "TZif",
            "A",
            "<",
            "<>",
            "AAA",
            "AAA-",
            "AAA0BBB",
            "AAA1BBB,M,M",
            &far,
        ] {
            offset(zone.as_bytes(), 1_800_000_000);
        }
        for count in [0, 1, u32::MAX / 8, u32::MAX] {
            for version in [0, b'2'] {
                let mut file = b"TZif".to_vec();
                file.push(version);
                file.resize(COUNTS_AT, 0);
                for _ in 0..6 {
                    file.extend(count.to_be_bytes());
                }
                file.resize(400, b'M');
                assert_eq!(offset(&file, 1_800_000_000), 0, "{count}");
            }
        }
        let rule = format!("AAA{far}:{far}BBB-{far},M{far}.{far}.{far}/{far},J{far}");
        offset(rule.as_bytes(), 1_800_000_000);
    }
}
