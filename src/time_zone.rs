//! How far local time is ahead of UTC: TZ as POSIX.1 writes it, and the files
//! of the time zone database, tzfile(5). Nothing is kept but their bytes, which
//! are read anew for each time: that is short work, and few lines carry one.

use crate::text::{before, split_once};
use crate::time::{Calendar, days_until};

/// A file begins with it, and then with its version.
const MAGIC: &[u8] = b"TZif";
const VERSION_AT: usize = MAGIC.len();
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
/// version 2 have no other, and no rule behind. After the last change the rule
/// holds, where there is one.
fn offset_by_file(file: &[u8], now: i64) -> Option<i64> {
    let mut rest = file;
    let first = Local::read(&mut rest, 4, now)?;
    if *file.get(VERSION_AT)? < b'2' {
        return Some(first.offset);
    }
    let second = Local::read(&mut rest, 8, now)?;
    let rule = before(rest.strip_prefix(b"\n")?, b'\n');
    Some(if second.is_after_changes && !rule.is_empty() {
        Rule(rule).offset(now)
    } else {
        second.offset
    })
}

/// What a block of a file says of some time.
struct Local {
    offset: i64,
    is_after_changes: bool,
}

/// The parts of a block: where the header counts what is in one, of how many
/// bytes that is, and whether it is a time besides. These are the seconds since
/// 1970 when local time changes, its type from each change on, and the types;
/// behind them names, leap seconds, and what changes are counted by.
const PARTS: [(u8, u8, bool); 7] = [
    (32, 0, true),
    (32, 1, false),
    (36, TYPE as u8, false),
    (40, 1, false),
    (28, 4, true),
    (24, 1, false),
    (20, 1, false),
];

impl Local {
    /// `width`: bytes of a time.
    #[inline(never)]
    fn read(block: &mut &[u8], width: usize, now: i64) -> Option<Self> {
        let (header, mut rest) = block.split_at_checked(HEADER)?;
        let mut parts: [&[u8]; 7] = [b""; 7];
        for (part, &(count_at, size, is_time)) in parts.iter_mut().zip(&PARTS) {
            let size = usize::from(size) + if is_time { width } else { 0 };
            let count = header.get(usize::from(count_at)..)?.get(..4)?;
            let length = (number(count) as usize).wrapping_mul(size);
            (*part, rest) = rest.split_at_checked(length)?;
        }
        *block = rest;
        let [mut changes, kinds, types, ..] = parts;
        let (mut passed, mut kind) = (0, 0);
        while let Some((change, later)) = changes.split_at_checked(width)
            && let Some(next) = kinds.get(passed)
            && number(change) <= now
        {
            (changes, kind) = (later, usize::from(*next));
            passed += 1;
        }
        let kind = types.get(kind * TYPE..).unwrap_or_default();
        Some(Self {
            offset: kind.get(..4).map_or(0, number),
            is_after_changes: passed == kinds.len(),
        })
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
        let year = Calendar::at(now).date().year as i32;
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
        let mut has_letters = false;
        while let [letter, rest @ ..] = self.0
            && letter.is_ascii_alphabetic()
        {
            (self.0, has_letters) = (rest, true);
        }
        has_letters
    }

    /// Digits; no number of a rule has more than four.
    #[inline(never)]
    fn number(&mut self) -> i32 {
        let mut number = 0;
        while let [digit @ b'0'..=b'9', rest @ ..] = self.0 {
            number = (number * 10 + i32::from(*digit - b'0')).min(9_999);
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
        i64::from(if is_negative { -seconds } else { seconds })
    }

    /// When the clock changes in a year: its local time until then, counted in
    /// seconds as if it were UTC.
    #[inline(never)]
    fn change(&mut self, year: i32) -> i64 {
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
        i64::from(day) * 86_400 + time
    }

    /// `month.week.weekday`; week 5 is the last one.
    fn weekday_of(&mut self, year: i32) -> i32 {
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
                file.resize(20, 0);
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
