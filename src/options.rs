//! The command line and the environment, turned into `Options` or into one
//! line that says what is wrong.
//!
//! `TABLE` is the only place that knows names, defaults and ranges: the parser,
//! the environment, `--help` and the tests over the documentation read it.

use heapless::Vec;

use crate::address::{Endpoint, Network};
use crate::kernel::{PATH_MAX_LENGTH, Path};
use crate::limits;
use crate::text::{
    Text, TextView, before, eq_ignore_case, has_byte, holds, parse_decimal, place, split,
    split_into, split_once, trim,
};
use crate::time::Duration;

/// Which option a row of the table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    /// --interval
    Interval,
    /// --window
    Window,
    /// --ports
    Ports,
    /// --show
    Show,
    /// --allow
    Allow,
    /// --block-time
    BlockTime,
    /// --firewall
    Firewall,
    /// --witness
    Witness,
    /// --widen
    Widen,
    /// --sandbox
    Sandbox,
    /// --dry-run
    DryRun,
    /// --listen
    Listen,
    /// --proc
    Proc,
    /// --exec-root
    ExecRoot,
    /// --hook
    Hook,
    /// --require-silent
    RequireSilent,
    /// --max-blocks-per-minute
    MaxBlocksPerMinute,
    /// --once
    Once,
    /// --list
    List,
    /// --unblock
    Unblock,
    /// --healthcheck
    Healthcheck,
    /// --check
    Check,
    /// --help
    Help,
    /// --version
    Version,
}

impl Id {
    /// Every option, in the order of `TABLE`.
    const ALL: [Self; 24] = [
        Self::Interval,
        Self::Window,
        Self::Ports,
        Self::Show,
        Self::Allow,
        Self::BlockTime,
        Self::Firewall,
        Self::Witness,
        Self::Widen,
        Self::Sandbox,
        Self::DryRun,
        Self::Listen,
        Self::Proc,
        Self::ExecRoot,
        Self::Hook,
        Self::RequireSilent,
        Self::MaxBlocksPerMinute,
        Self::Once,
        Self::List,
        Self::Unblock,
        Self::Healthcheck,
        Self::Check,
        Self::Help,
        Self::Version,
    ];

    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Whether it says what to do instead of how.
    const fn is_action(self) -> bool {
        self.bit() & (TEXTS | MODES | Self::Check.bit()) != 0
    }
}

/// Options that switch to a mode, of which each excludes the others.
const MODES: u32 = Id::Once.bit() | Id::List.bit() | Id::Unblock.bit() | Id::Healthcheck.bit();
/// Options that ask for a text about the program, whatever else is said.
const TEXTS: u32 = Id::Help.bit() | Id::Version.bit();

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What the parser does with it.
    pub id: Id,
    /// What its line of the table says.
    fields: [&'static [u8]; 6],
}

/// What the name of each environment variable begins with.
const PREFIX: &[u8] = b"TCPPARSER_";

/// Longest name of an environment variable.
const VARIABLE_MAX: usize = 40;
/// Longest name of an option.
const NAME_MAX: usize = VARIABLE_MAX - PREFIX.len();

impl Row {
    /// The long name without its dashes.
    pub const fn name(&self) -> &'static [u8] {
        self.fields[0]
    }

    /// The letter of the short form.
    pub const fn short(&self) -> Option<u8> {
        self.fields[1].first().copied()
    }

    /// The word for the value in `--help`; empty for a flag.
    pub const fn argument(&self) -> &'static [u8] {
        self.fields[2]
    }

    /// The value where none is given, as one would type it; empty for none.
    pub const fn default(&self) -> &'static [u8] {
        self.fields[3]
    }

    /// Which values are allowed. `low..high` is what the parser checks against.
    pub const fn range(&self) -> &'static [u8] {
        self.fields[4]
    }

    /// What it does, in a few words.
    pub const fn help(&self) -> &'static [u8] {
        self.fields[5]
    }

    /// The environment variable that does the same: TCPPARSER_BLOCK_TIME.
    pub fn variable(&self) -> Text<VARIABLE_MAX> {
        let mut name = Text::from_bytes(PREFIX);
        for byte in self.name() {
            name.put_byte(if *byte == b'-' {
                b'_'
            } else {
                byte.to_ascii_uppercase()
            });
        }
        name
    }

    const fn is_flag(&self) -> bool {
        self.argument().is_empty()
    }

    const fn is_list(&self) -> bool {
        matches!(self.id, Id::Allow | Id::BlockTime)
    }
}

/// Every option, in the order of `--help` and of `Id`: name, letter, word for
/// the value, default, range, help. One text, since a table of texts would be
/// addresses that the loader writes into memory of our own.
const TABLE: &[u8] = b"\
interval|i|DUR|10s|100ms..1h|time between readings\n\
window|w|DUR|60s|1s..1h|how far back ports count\n\
ports|p|N|3|1..63|MORE than N ports are a scan\n\
show||WHAT|all|all/new/scans|what a reading prints\n\
allow|a|CIDR||address or network|never block; repeatable\n\
block-time||LIST|10m,1h,1d,7d|1..8 of 1s..24d/forever|length\n\
firewall||NAME|auto|auto/iptables/nft/none|where blocks go\n\
witness||WHAT|auto|auto/none|packets that open connections\n\
widen||N|16|2..256/none|blocked /64s that block a /56\n\
sandbox||WHAT|auto|auto/none|give up rights once it runs\n\
dry-run|n||||detect and report, change no firewall\n\
listen|l|ADDR:PORT|[::]:3021|ADDR:PORT or none|HTTP\n\
proc||DIR|/proc|1..200 bytes|procfs to read\n\
exec-root||DIR||1..200 bytes|chroot of the firewall tools\n\
hook||FILE||absolute, 1..200 bytes|run at scans, blocks\n\
require-silent|||||block only sources that sent no data\n\
max-blocks-per-minute||N||1..100000|hold more back\n\
once|||||one reading, no firewall, no HTTP; exit\n\
list|||||print the blocks\n\
unblock||WHOM||ADDR, CIDR or all|remove blocks\n\
healthcheck|||||ask the running daemon; exit 0 or 1\n\
check|||||name a wrong option or variable; exit 0 or 2\n\
help|h||||this page\n\
version|V||||name, version, target and revision";

/// Every option, in the order of `--help`.
pub fn rows() -> impl Iterator<Item = Row> {
    Id::ALL.iter().copied().map(row_of)
}

/// The option whose row is meant.
#[inline(never)]
fn find(is_meant: &dyn Fn(&Row) -> bool) -> Option<Id> {
    rows().find(is_meant).map(|row| row.id)
}

/// The row of one option.
#[inline(never)]
fn row_of(id: Id) -> Row {
    let line = split(TABLE, b'\n').nth(id as usize).unwrap_or_default();
    let mut row = Row {
        id,
        fields: [b""; 6],
    };
    split_into(&mut row.fields, line, b'|');
    row
}

/// Entries of --block-time.
pub const BLOCK_TIMES: usize = 8;

/// One entry of --block-time: 24 days fit the longest timeout of a kernel set
/// (ipset(8): 2147483 seconds).
const BLOCK_TIME_RANGE: &[u8] = b"1s..24d/forever";

/// Longest directory or file the options accept, in bytes.
pub const OPTION_PATH_MAX_LENGTH: usize = 200;

const _: () = assert!(
    OPTION_PATH_MAX_LENGTH + "/sys/net/ipv4/ip_local_port_range".len() <= PATH_MAX_LENGTH,
    "the longest path below --proc fits"
);

/// What a scheduled reading prints (--show).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Every established connection.
    All,
    /// Only new ones.
    New,
    /// None; scans and blocks are always printed.
    Scans,
}

/// Which firewall is asked to block (--firewall).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirewallChoice {
    /// Some rules by iptables where it runs, what is more by nf_tables.
    Auto,
    /// Rules by iptables alone.
    Iptables,
    /// Elements of sets by nf_tables alone: no program is run.
    Nft,
    /// None: detect and report only, no privilege needed.
    None,
}

impl FirewallChoice {
    /// In the order of `TABLE`.
    const ALL: [Self; 4] = [Self::Auto, Self::Iptables, Self::Nft, Self::None];
}

/// Whom --unblock is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Every block.
    All,
    /// Blocks of this address or network.
    Network(Network),
}

impl Target {
    /// An address means the block that holds it, a network every block in it.
    pub fn touches(self, source: Network) -> bool {
        match self {
            Self::All => true,
            Self::Network(network) => network.overlaps(source),
        }
    }

    /// Whether a block holds this address, or network, and many sources more.
    pub fn is_within(self, block: Network) -> bool {
        match self {
            Self::All => false,
            Self::Network(network) => {
                block.is_wide() && network.prefix_length() > block.prefix_length()
            }
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        match text {
            b"all" => Some(Self::All),
            _ => Network::parse(text).map(Self::Network),
        }
    }
}

/// What the process is to do. A tag of its own keeps `Run` all zero bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Watch until a signal ends it.
    Run,
    /// One reading (--once).
    Once,
    /// Print `write_help`, exit 0.
    Help,
    /// Print `write_version`, exit 0.
    Version,
    /// Print the blocks.
    List,
    /// Remove blocks.
    Unblock(Target),
    /// Ask the running daemon how it is.
    Healthcheck,
    /// None of it: it was only to be read.
    Check,
}

/// Everything that can be set without building anew.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Options {
    /// What to do.
    pub action: Action,
    /// Time between scheduled readings.
    pub interval: Duration,
    /// How far back ports count.
    pub window: Duration,
    /// A source on more distinct local ports than this is a port scan.
    pub ports: u8,
    /// What a scheduled reading prints.
    pub show: Show,
    /// Lengths of a source's first, second, … block; `None` is for ever. See
    /// `block_length`.
    pub block_times: Vec<Option<Duration>, BLOCK_TIMES>,
    /// Where blocks go.
    pub firewall: FirewallChoice,
    /// --firewall names ipset, of earlier versions: read as auto.
    pub names_ipset: bool,
    /// Packet sockets are opened.
    pub has_witness: bool,
    /// Rights are given up.
    pub has_sandbox: bool,
    /// Change no firewall.
    pub dry_run: bool,
    /// Where HTTP is served; `None`: nowhere. [::] stands for IPv4 as well.
    pub listen: Option<Endpoint>,
    /// The procfs to read, without a trailing slash unless it was typed.
    pub proc_directory: Path,
    /// The firewall child's root directory; empty: ours.
    pub exec_root: Path,
    /// What is run at each scan, block and unblock; empty: nothing.
    pub hook: Path,
    /// Block only sources whose connections carried no data.
    pub require_silent: bool,
    /// Blocks a minute; more are held back. 0: what the firewall can bear.
    pub max_blocks_per_minute: u32,
    /// So many blocked /64s make their /56 one block, so many /56s their /48;
    /// 0: never.
    pub widen: u16,
    /// Never blocked.
    pub allow: Vec<Network, { limits::ALLOWED }>,
}

impl Options {
    /// Options before `parse_into`: all bytes zero, so that statics stay in
    /// .bss.
    pub const fn new() -> Self {
        Self {
            action: Action::Run,
            interval: Duration::ZERO,
            window: Duration::ZERO,
            ports: 0,
            show: Show::All,
            allow: Vec::new(),
            block_times: Vec::new(),
            firewall: FirewallChoice::Auto,
            names_ipset: false,
            has_witness: false,
            has_sandbox: false,
            dry_run: false,
            listen: Some(Endpoint::BLANK),
            proc_directory: Text::new(),
            exec_root: Text::new(),
            hook: Text::new(),
            require_silent: false,
            max_blocks_per_minute: 0,
            widen: 0,
        }
    }

    /// Replaces everything by the defaults, then the `environment`, then the
    /// `arguments` (without the program's name). A variable counts only where
    /// no argument speaks of the same option, or where none says what to do;
    /// --allow adds up. An empty variable counts as unset, and of two with one
    /// name the first one counts, as for getenv(3).
    ///
    /// # Errors
    /// The first thing that is not allowed; the process should print its line
    /// and exit 2.
    #[inline(never)]
    pub fn parse_into<'a: 'e, 'e>(
        &mut self,
        arguments: impl Iterator<Item = &'a [u8]>,
        environment: impl Iterator<Item = &'e [u8]>,
    ) -> Result<(), UsageError<'e>> {
        self.set_defaults();
        let mut given = Given::new();
        let read = self.read(arguments, environment, &mut given);
        read.map_err(|problem| UsageError {
            problem,
            origin: given.origin,
            word: given.word,
        })
    }

    fn set_defaults(&mut self) {
        self.allow.clear();
        self.exec_root.clear();
        self.hook.clear();
        self.max_blocks_per_minute = 0;
        let mut given = Given::new();
        for row in rows() {
            if !row.default().is_empty() {
                // A unit test holds that the table's defaults are allowed.
                let _ = self.take(row.id, row.default(), &mut given);
            }
        }
    }

    fn read<'a: 'e, 'e>(
        &mut self,
        arguments: impl Iterator<Item = &'a [u8]>,
        environment: impl Iterator<Item = &'e [u8]>,
        given: &mut Given<'e>,
    ) -> Result<(), Problem> {
        self.read_arguments(arguments, given)?;
        // Help is for those whose environment is broken, too.
        if !given.asks_for_text() {
            self.read_environment(environment, given)?;
        }
        self.dry_run = given.is_on(Id::DryRun);
        self.require_silent = given.is_on(Id::RequireSilent);
        self.action = given.action()?;
        Ok(())
    }

    fn read_arguments<'a: 'e, 'e>(
        &mut self,
        mut arguments: impl Iterator<Item = &'a [u8]>,
        given: &mut Given<'e>,
    ) -> Result<(), Problem> {
        while let Some(argument) = arguments.next() {
            given.word = argument;
            match argument {
                [b'-', b'-', long @ ..] => self.read_long(long, &mut arguments, given)?,
                [b'-', _, ..] => self.read_short(argument, &mut arguments, given)?,
                _ => return Err(Problem::Unknown),
            }
        }
        Ok(())
    }

    /// `--name`, `--name value` or `--name=value`.
    fn read_long<'a: 'e, 'e>(
        &mut self,
        long: &'a [u8],
        arguments: &mut impl Iterator<Item = &'a [u8]>,
        given: &mut Given<'e>,
    ) -> Result<(), Problem> {
        let (name, value) = split_once(long, b'=');
        let id = find(&|row| row.name() == name).ok_or(Problem::Unknown)?;
        let value = if name.len() < long.len() {
            value
        } else if row_of(id).is_flag() {
            b"on"
        } else {
            arguments.next().ok_or(Problem::NoValue(id))?
        };
        self.take(id, value, given)
    }

    /// `-n`, several flags at once as in `-nh`, `-i 5s` or `-i5s`.
    fn read_short<'a: 'e, 'e>(
        &mut self,
        argument: &'a [u8],
        arguments: &mut impl Iterator<Item = &'a [u8]>,
        given: &mut Given<'e>,
    ) -> Result<(), Problem> {
        let mut letters = argument.get(1..).unwrap_or_default();
        while let [letter, rest @ ..] = letters {
            given.word = argument;
            let id = find(&|row| row.short() == Some(*letter)).ok_or(Problem::Unknown)?;
            let mut value = rest;
            letters = b"";
            if row_of(id).is_flag() {
                (value, letters) = (b"on", rest);
            } else if rest.is_empty() {
                value = arguments.next().ok_or(Problem::NoValue(id))?;
            }
            self.take(id, value, given)?;
        }
        Ok(())
    }

    fn read_environment<'a>(
        &mut self,
        environment: impl Iterator<Item = &'a [u8]>,
        given: &mut Given<'a>,
    ) -> Result<(), Problem> {
        let acts = given.acts();
        let mut decided = given.seen & !Id::Allow.bit();
        given.origin = Origin::Variable;
        for entry in environment {
            let (name, value) = split_once(entry, b'=');
            if !name.starts_with(PREFIX) {
                continue;
            }
            let Some(id) = find(&|row| row.variable().as_bytes() == name) else {
                if is_injected(entry, name) {
                    continue;
                }
                given.word = name;
                return Err(Problem::Unknown);
            };
            let is_decided = decided & id.bit() != 0 || id.is_action() && acts;
            decided |= id.bit();
            if !is_decided && !value.is_empty() {
                self.take(id, value, given)?;
            }
        }
        given.origin = Origin::Argument;
        Ok(())
    }

    /// Takes a value, or each part of a list.
    #[inline(never)]
    fn take<'a>(&mut self, id: Id, value: &'a [u8], given: &mut Given<'a>) -> Result<(), Problem> {
        let row = row_of(id);
        if id == Id::BlockTime {
            self.block_times.clear();
        }
        if !row.is_list() {
            return self.take_part(&row, value, given);
        }
        for part in split(value, b',') {
            self.take_part(&row, trim(part), given)?;
        }
        Ok(())
    }

    #[inline(never)]
    fn take_part<'a>(
        &mut self,
        row: &Row,
        part: &'a [u8],
        given: &mut Given<'a>,
    ) -> Result<(), Problem> {
        given.word = part;
        if self.list_length(row.id) >= list_capacity(row.id) {
            return Err(Problem::TooMany(row.id));
        }
        let is_on = if row.is_flag() {
            parse_flag(part)
        } else {
            self.set(row, part, given).map(|()| true)
        };
        let is_on = is_on.ok_or(Problem::NotAllowed(row.id))?;
        given.note(row.id, is_on);
        Ok(())
    }

    fn list_length(&self, id: Id) -> usize {
        match id {
            Id::Allow => self.allow.len(),
            Id::BlockTime => self.block_times.len(),
            _ => 0,
        }
    }

    /// Sets one option that is no flag; `None` where the value is not allowed.
    #[inline(never)]
    fn set(&mut self, row: &Row, value: &[u8], given: &mut Given) -> Option<()> {
        let number = number(value, row.range());
        match row.id {
            Id::Interval => self.interval = Duration::from_nanos(number?),
            Id::Window => self.window = Duration::from_nanos(number?),
            Id::Ports => self.ports = number? as u8,
            Id::Show => self.show = *[Show::All, Show::New, Show::Scans].get(number? as usize)?,
            Id::Allow => self.allow.push(Network::parse(value)?).ok()?,
            Id::BlockTime => self.block_times.push(parse_block_time(value)?).ok()?,
            Id::Firewall => {
                self.names_ipset = value == b"ipset";
                let place = if self.names_ipset { 0 } else { number? };
                self.firewall = *FirewallChoice::ALL.get(place as usize)?;
            }
            // None is the second word.
            Id::Widen => self.widen = if number? == 1 { 0 } else { number? as u16 },
            Id::Witness => self.has_witness = number? == 0,
            Id::Sandbox => self.has_sandbox = number? == 0,
            Id::Listen => self.listen = parse_listen(value)?,
            Id::Proc => store_path(&mut self.proc_directory, value)?,
            Id::ExecRoot => store_path(&mut self.exec_root, value)?,
            Id::Hook if value.first() != Some(&b'/') => return None,
            Id::Hook => store_path(&mut self.hook, value)?,
            Id::MaxBlocksPerMinute => self.max_blocks_per_minute = number? as u32,
            Id::Unblock => given.target = Target::parse(value)?,
            Id::DryRun
            | Id::RequireSilent
            | Id::Once
            | Id::List
            | Id::Healthcheck
            | Id::Check
            | Id::Help
            | Id::Version => {}
        }
        Some(())
    }
}

/// Which options were spoken of, one bit each, and what is read.
struct Given<'a> {
    seen: u32,
    on: u32,
    target: Target,
    origin: Origin,
    word: &'a [u8],
}

const _: () = assert!(Id::ALL.len() <= u32::BITS as usize, "a bit for each option");

impl Given<'_> {
    const fn new() -> Self {
        Self {
            seen: 0,
            on: 0,
            target: Target::All,
            origin: Origin::Argument,
            word: b"",
        }
    }

    const fn note(&mut self, id: Id, is_on: bool) {
        self.seen |= id.bit();
        self.on &= !id.bit();
        if is_on {
            self.on |= id.bit();
        }
    }

    const fn is_on(&self, id: Id) -> bool {
        self.on & id.bit() != 0
    }

    /// Whether it was said what to do.
    const fn acts(&self) -> bool {
        self.on & (TEXTS | MODES) != 0
    }

    const fn asks_for_text(&self) -> bool {
        self.on & TEXTS != 0
    }

    /// What to do; two modes at once are refused.
    fn action(&self) -> Result<Action, Problem> {
        let first = |bits: u32| Id::ALL.get(bits.trailing_zeros() as usize).copied();
        let modes = self.on & MODES;
        let is_none = !self.asks_for_text();
        if let (Some(one), Some(other), true) =
            (first(modes), first(modes & modes.wrapping_sub(1)), is_none)
        {
            return Err(Problem::NotTogether(one, other));
        }
        let said = [self.on & TEXTS, self.on & Id::Check.bit(), modes];
        Ok(match said.into_iter().find_map(first) {
            Some(Id::Help) => Action::Help,
            Some(Id::Version) => Action::Version,
            Some(Id::Check) => Action::Check,
            Some(Id::Once) => Action::Once,
            Some(Id::List) => Action::List,
            Some(Id::Unblock) => Action::Unblock(self.target),
            Some(Id::Healthcheck) => Action::Healthcheck,
            _ => Action::Run,
        })
    }
}

/// What the variables hold, up to and with their `=`, that Kubernetes makes for
/// a service, and Docker for a linked container, whose name begins like ours;
/// and those of our own builds.
const INJECTED: &[u8] = b"_SERVICE_HOST=|_SERVICE_PORT=|_SERVICE_PORT_|_NAME=|_ENV_|\
    _PORT_0|_PORT_1|_PORT_2|_PORT_3|_PORT_4|_PORT_5|_PORT_6|_PORT_7|_PORT_8|_PORT_9|\
    TCPPARSER_BUILD_";

/// Whether an entry of the environment is one of these, or a …_PORT with a URL.
fn is_injected(entry: &[u8], name: &[u8]) -> bool {
    let name = entry.get(..=name.len()).unwrap_or(name);
    let is_url = name.ends_with(b"_PORT=") && holds(entry, b"://");
    is_url || split(INJECTED, b'|').any(|word| holds(name, word))
}

/// The option whose name takes the fewest changes to be made of a word, if half
/// of that is left then.
fn nearest(word: &[u8]) -> Option<Id> {
    let word = before(word, b'=');
    let word = word.strip_prefix(b"--").unwrap_or(word);
    let word = word.get(..NAME_MAX).unwrap_or(word);
    // What is like the half of it at least.
    for most in 0..=word.len() / 2 {
        let id = find(&|row| distance(word, row.name()) <= most);
        if id.is_some() {
            return id;
        }
    }
    None
}

/// How many bytes have to be put in, taken out or replaced to make `name` of
/// `word` (Levenshtein), one row of the matrix after the other. Case does not
/// matter, and variables have `_` for `-`.
#[inline(never)]
fn distance(word: &[u8], name: &[u8]) -> usize {
    let mut row: [usize; NAME_MAX] = core::array::from_fn(|column| column + 1);
    let mut last = name.len();
    for (line, byte) in word.iter().enumerate() {
        let byte = if *byte == b'_' {
            b'-'
        } else {
            byte.to_ascii_lowercase()
        };
        let mut above_left = line;
        last = line + 1;
        for (above, own) in row.iter_mut().zip(name) {
            let replaced = above_left + usize::from(byte != *own);
            above_left = *above;
            last = replaced.min(last + 1).min(*above + 1);
            *above = last;
        }
    }
    last
}

/// How many values an option can hold.
const fn list_capacity(id: Id) -> usize {
    match id {
        Id::Allow => limits::ALLOWED,
        Id::BlockTime => BLOCK_TIMES,
        _ => 1,
    }
}

/// What a text means of the words of a range, between slashes: its value, if it
/// lies in `low..high`, both included, or the place of its word. Durations are in
/// nanoseconds.
#[inline(never)]
fn number(text: &[u8], range: &[u8]) -> Option<u64> {
    for (place, word) in split(range, b'/').enumerate() {
        let (low, high) = split_once(word, b'.');
        let Some(high) = high.strip_prefix(b".") else {
            if word == text {
                return Some(place as u64);
            }
            continue;
        };
        let parse = |text| match parse_decimal(high) {
            Some(_) => parse_decimal(text),
            None => Duration::parse(text).map(Duration::as_nanos),
        };
        if let (Some(low), Some(value), Some(high)) = (parse(low), parse(text), parse(high))
            && (low..=high).contains(&value)
        {
            return Some(value);
        }
    }
    None
}

#[inline(never)]
fn parse_flag(text: &[u8]) -> Option<bool> {
    let place = place(b"1|true|yes|on|0|false|no|off", text, eq_ignore_case)?;
    Some(place < 4)
}

/// One entry of --block-time; the inner `None` is for ever.
fn parse_block_time(text: &[u8]) -> Option<Option<Duration>> {
    let nanoseconds = number(text, BLOCK_TIME_RANGE)?;
    // The second word.
    Some((nanoseconds != 1).then_some(Duration::from_nanos(nanoseconds)))
}

/// `none`, an endpoint, or `:PORT` for any address.
fn parse_listen(text: &[u8]) -> Option<Option<Endpoint>> {
    let endpoint = match text {
        b"none" => return Some(None),
        [b':', port @ ..] => Endpoint {
            address: core::net::IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED),
            port: parse_decimal(port).and_then(|port| u16::try_from(port).ok())?,
        },
        _ => Endpoint::parse(text)?,
    };
    // With port 0 the kernel would choose an unknown one.
    (endpoint.port != 0).then_some(Some(endpoint))
}

fn store_path(path: &mut Path, text: &[u8]) -> Option<()> {
    let fits = !text.is_empty() && text.len() <= OPTION_PATH_MAX_LENGTH;
    if !fits || has_byte(text, 0) {
        return None;
    }
    path.clear();
    path.put(text);
    Some(())
}

/// What is wrong with the command line or the environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageError<'a> {
    problem: Problem,
    origin: Origin,
    /// What was read last.
    word: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    /// Neither an option nor anything else that is expected.
    Unknown,
    /// The last argument is an option that takes a value.
    NoValue(Id),
    /// The value is not allowed.
    NotAllowed(Id),
    /// The list was full before this value.
    TooMany(Id),
    /// Two options that say what to do.
    NotTogether(Id, Id),
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// The command line.
    Argument,
    /// The environment.
    Variable,
}

/// Longest line of a usage error, in bytes with its newline.
pub const USAGE_LINE: usize = 200;

/// Bytes of something refused that are quoted.
const QUOTE: usize = 40;

/// Appends the start of something refused, fit for a terminal: printable ASCII
/// with `?` for every other byte.
#[inline(never)]
fn put_quote(out: &mut TextView, value: &[u8]) {
    out.put_byte(b'\'');
    for byte in value.iter().take(QUOTE) {
        let is_plain = (b' '..=b'~').contains(byte);
        out.put_byte(if is_plain { *byte } else { b'?' });
    }
    out.put_byte(b'\'');
}

impl UsageError<'_> {
    /// One line of at most `USAGE_LINE` printable bytes and its newline, for
    /// standard error. The exit status that goes with it is 2.
    #[inline(never)]
    pub fn line(&self) -> Text<USAGE_LINE> {
        let mut line = Text::new();
        self.write(&mut line);
        line
    }

    #[inline(never)]
    fn write(&self, out: &mut TextView) {
        out.put(b"tcpparser: ");
        let (id, words): (_, &[u8]) = match self.problem {
            Problem::Unknown => return self.write_unknown(out),
            Problem::NoValue(id) => (id, b": a value is missing: "),
            Problem::NotAllowed(id) => (id, b" is not allowed: "),
            Problem::TooMany(id) => (id, b" is one too many: at most "),
            Problem::NotTogether(id, _) => (id, b": not together with "),
        };
        put_name(out, id, self.origin);
        if words.starts_with(b" ") {
            out.put(b": ");
            put_quote(out, self.word);
        }
        out.put(words);
        match self.problem {
            Problem::TooMany(id) => out.put_decimal(list_capacity(id) as u64),
            Problem::NotTogether(_, other) => put_name(out, other, self.origin),
            _ => put_allowed(out, id),
        }
        out.put_byte(b'\n');
    }

    fn write_unknown(&self, out: &mut TextView) {
        let name = match self.origin {
            Origin::Argument => self.word,
            Origin::Variable => self.word.get(PREFIX.len()..).unwrap_or_default(),
        };
        put_quote(out, self.word);
        out.put(b" is not an option");
        if let Some(id) = nearest(name) {
            out.put(b", the nearest is ");
            put_name(out, id, self.origin);
        }
        out.put(b": see --help\n");
    }
}

/// The option's name as one types it, or the variable's.
#[inline(never)]
fn put_name(out: &mut TextView, id: Id, origin: Origin) {
    let row = row_of(id);
    match origin {
        Origin::Argument => write_part(out, b"--", row.name(), b""),
        Origin::Variable => out.put(row.variable().as_bytes()),
    }
}

fn put_allowed(out: &mut TextView, id: Id) {
    let row = row_of(id);
    if row.is_flag() {
        out.put(b"1/true/yes/on or 0/false/no/off");
    } else {
        out.put(row.range());
    }
}

/// Columns of the names in `--help`.
const HELP_NAMES: usize = 33;

/// Appends the page of `--help`: at most 25 lines of at most 80 columns, a console.
pub fn write_help(out: &mut TextView) {
    out.put(b"Usage: tcpparser [OPTION]...  DUR: 9, 9s, 9ms, 9m, 9h, 9d; or TCPPARSER_PORTS=3\n");
    for row in rows() {
        write_help_line(out, &row);
    }
}

#[inline(never)]
fn write_help_line(out: &mut TextView, row: &Row) {
    let mut names: Text<HELP_NAMES> = Text::from_bytes(b"      --");
    if let Some(letter) = row.short() {
        names.overwrite(2, &[b'-', letter, b',']);
    }
    names.put(row.name());
    write_part(&mut names, b" ", row.argument(), b"");
    out.put(names.as_bytes());
    for _ in 0..names.room() {
        out.put_byte(b' ');
    }
    out.put(row.help());
    write_part(out, b": ", row.range(), b"");
    write_part(out, b" [", row.default(), b"]");
    out.put_byte(b'\n');
}

/// Appends `text` between `before` and `after`, nothing where it is empty.
fn write_part(out: &mut TextView, before: &[u8], text: &[u8], after: &[u8]) {
    if !text.is_empty() {
        out.put(before);
        out.put(text);
        out.put(after);
    }
}

/// Appends the line of `--version`: name, version, target, revision.
pub fn write_version(out: &mut TextView) {
    let line = concat!(
        "tcpparser ",
        env!("CARGO_PKG_VERSION"),
        " ",
        env!("TCPPARSER_TARGET"),
        " ",
        env!("TCPPARSER_REVISION"),
        "\n"
    );
    out.put(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::{String, ToString};
    use std::sync::LazyLock;
    use std::vec::Vec as List;

    /// A row whose bytes are text.
    struct TextRow {
        row: Row,
        name: &'static str,
        argument: &'static str,
        default: &'static str,
        range: &'static str,
        help: &'static str,
        environment: String,
    }

    impl std::ops::Deref for TextRow {
        type Target = Row;

        fn deref(&self) -> &Row {
            &self.row
        }
    }

    static TABLE: LazyLock<List<TextRow>> = LazyLock::new(|| {
        let text = |bytes| std::str::from_utf8(bytes).unwrap();
        let texts = rows().map(|row| TextRow {
            row,
            name: text(row.name()),
            argument: text(row.argument()),
            default: text(row.default()),
            range: text(row.range()),
            help: text(row.help()),
            environment: String::from_utf8(row.variable().as_bytes().to_vec()).unwrap(),
        });
        texts.collect()
    });

    fn parse_bytes<'a>(
        arguments: &[&'a [u8]],
        variables: &[(&str, &'a [u8])],
    ) -> Result<Options, UsageError<'a>> {
        let variables = variables.iter();
        // An error names one of them.
        let variables =
            variables.map(|(name, value)| &*[name.as_bytes(), b"=", value].concat().leak());
        // What stood there before must not shine through.
        let mut options = Options::new();
        options.allow.push(Network::BLANK).unwrap();
        options.action = Action::Healthcheck;
        options.dry_run = true;
        options.require_silent = true;
        options.exec_root = Text::from_bytes(b"/old");
        options.hook = Text::from_bytes(b"/old");
        options.parse_into(arguments.iter().copied(), variables)?;
        Ok(options)
    }

    fn parse<'a>(arguments: &[&'a str]) -> Result<Options, UsageError<'a>> {
        let arguments: List<&[u8]> = arguments.iter().map(|a| a.as_bytes()).collect();
        parse_bytes(&arguments, &[])
    }

    fn accepted(arguments: &[&str]) -> Options {
        parse(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {}", line(&error)))
    }

    fn line(error: &UsageError) -> String {
        let mut text: Text<{ 2 * USAGE_LINE }> = Text::new();
        error.write(&mut text);
        let line = text.as_bytes();
        assert!(line.len() <= USAGE_LINE, "{} bytes", line.len());
        let (last, printable) = line.split_last().unwrap();
        assert_eq!(*last, b'\n');
        assert!(printable.iter().all(|byte| (b' '..=b'~').contains(byte)));
        String::from_utf8(printable.to_vec()).unwrap()
    }

    fn refused(arguments: &[&str]) -> String {
        match parse(arguments) {
            Ok(options) => panic!("{arguments:?} was accepted: {options:?}"),
            Err(error) => line(&error),
        }
    }

    fn from_environment(name: &str, value: &[u8]) -> Result<Options, String> {
        parse_bytes(&[], &[(name, value)]).map_err(|error| line(&error))
    }

    fn seconds(length: u64) -> Duration {
        Duration::from_secs(length)
    }

    /// An option whatever its fate, for comparing two ways to say the same.
    fn outcome(result: Result<Options, UsageError>) -> String {
        match result {
            Ok(options) => format!("{options:?}"),
            Err(error) => line(&error),
        }
    }

    fn help() -> String {
        let mut text: Text<4096> = Text::new();
        write_help(&mut text);
        assert!(!text.is_truncated());
        String::from_utf8(text.as_bytes().to_vec()).unwrap()
    }

    /// Options as they are given, but for those that are as by default.
    fn shown(options: &Options) -> String {
        let text = |write: &dyn Fn(&mut TextView)| {
            let mut text: Text<64> = Text::new();
            write(&mut text);
            String::from_utf8(text.as_bytes().to_vec()).unwrap()
        };
        let time = |length: Duration| text(&|out| length.write(out));
        let cidr = |network: Network| text(&|out| network.write_cidr(out));
        let word = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
        let forever = || String::from("forever");
        let block_times = options.block_times.iter();
        let block_times = block_times.map(|length| length.map_or_else(forever, time));
        let allow = options.allow.iter().map(|network| cidr(*network));
        let listen = options.listen.map(|listen| text(&|out| listen.write(out)));
        let action = match options.action {
            Action::Unblock(Target::Network(network)) => format!("unblock={}", cidr(network)),
            Action::Unblock(Target::All) => String::from("unblock=all"),
            action => word(&action),
        };
        let path = |path: &Path| String::from_utf8(path.as_bytes().to_vec()).unwrap();
        let values = [
            ("", action, "run"),
            ("interval=", time(options.interval), "10s"),
            ("window=", time(options.window), "1m"),
            ("ports=", options.ports.to_string(), "3"),
            ("show=", word(&options.show), "all"),
            ("allow=", allow.collect::<List<_>>().join(","), ""),
            (
                "block-time=",
                block_times.collect::<List<_>>().join(","),
                "10m,1h,1d,7d",
            ),
            ("firewall=", word(&options.firewall), "auto"),
            ("widen=", options.widen.to_string(), "16"),
            ("ipset=", word(&options.names_ipset), "false"),
            ("witness=", word(&options.has_witness), "true"),
            ("sandbox=", word(&options.has_sandbox), "true"),
            ("dry-run=", word(&options.dry_run), "false"),
            ("listen=", listen.unwrap_or("none".into()), "[::]:3021"),
            ("proc=", path(&options.proc_directory), "/proc"),
            ("exec-root=", path(&options.exec_root), ""),
            ("hook=", path(&options.hook), ""),
            ("require-silent=", word(&options.require_silent), "false"),
            (
                "max-blocks-per-minute=",
                word(&options.max_blocks_per_minute),
                "0",
            ),
        ];
        let values = values
            .into_iter()
            .filter(|(_, value, default)| value != default);
        let values = values.map(|(name, value, _)| format!("{name}{value}"));
        values.collect::<List<_>>().join(" ")
    }

    /// Command lines, and what comes of each: the options that are not as by
    /// default, or the message. An underscore stands for a blank, two quotes
    /// for an empty word; words that begin with `$` are variables.
    fn check(rows: &[(&str, &str)]) {
        for (line_given, expected) in rows {
            let words = line_given.split(' ').filter(|word| !word.is_empty());
            let (variables, arguments) =
                words.partition::<List<&str>, _>(|word| word.starts_with('$'));
            let value = |word: &str| word.replace("''", "").replace('_', " ");
            let variables = variables.into_iter().map(|word| {
                let (name, given) = word[1..].split_once('=').unwrap();
                (format!("TCPPARSER_{name}"), value(given))
            });
            let variables: List<(String, String)> = variables.collect();
            let variables = variables.iter();
            let variables = variables.map(|(name, value)| (name.as_str(), value.as_bytes()));
            let arguments: List<String> = arguments.into_iter().map(value).collect();
            let arguments: List<&[u8]> = arguments.iter().map(|word| word.as_bytes()).collect();
            let answer = match parse_bytes(&arguments, &variables.collect::<List<_>>()) {
                Ok(options) => shown(&options),
                Err(error) => {
                    let line = line(&error);
                    line.strip_prefix("tcpparser: ").unwrap().to_string()
                }
            };
            assert_eq!(answer, *expected, "{line_given}");
        }
    }

    #[test]
    fn nothing_given() {
        check(&[("", "")]);
        let mut defaults = Options::new();
        defaults.set_defaults();
        assert_eq!(accepted(&[]), defaults);
    }

    #[test]
    fn the_table_is_sound() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.id as usize, index, "{}", row.name);
            let name = row.name.to_uppercase().replace('-', "_");
            assert_eq!(row.environment, format!("TCPPARSER_{name}"));
            assert_eq!(row.is_flag(), row.range.is_empty(), "{}", row.name);
            if !row.default.is_empty() {
                let mut given = Given::new();
                let value = row.default.as_bytes();
                Options::new().take(row.id, value, &mut given).unwrap();
                assert!(given.is_on(row.id));
            }
            for other in TABLE.iter().take(index) {
                assert_ne!(row.name, other.name);
                assert!(row.short().is_none() || row.short() != other.short());
            }
        }
    }

    /// The contract's table, written down a second time.
    #[test]
    fn names_and_defaults() {
        let expected = [
            "i interval 10s",
            "w window 60s",
            "p ports 3",
            "- show all",
            "a allow -",
            "- block-time 10m,1h,1d,7d",
            "- firewall auto",
            "- witness auto",
            "- widen 16",
            "- sandbox auto",
            "n dry-run -",
            "l listen [::]:3021",
            "- proc /proc",
            "- exec-root -",
            "- hook -",
            "- require-silent -",
            "- max-blocks-per-minute -",
            "- once -",
            "- list -",
            "- unblock -",
            "- healthcheck -",
            "- check -",
            "h help -",
            "V version -",
        ];
        let found = TABLE.iter().map(|row| {
            let default = if row.default.is_empty() {
                "-"
            } else {
                row.default
            };
            format!(
                "{} {} {default}",
                row.short().unwrap_or(b'-') as char,
                row.name
            )
        });
        assert_eq!(found.collect::<List<_>>(), expected);
    }

    #[rustfmt::skip]
    #[test]
    fn edges_of_every_range() {
        let cases: [(&str, &[&str], &[&str]); 18] = [
            (
                "--interval",
                &["100ms", "3600s", "1h", "60m", "1", "3600", "3600000ms", "0001s"],
                &["99ms", "3600001ms", "3601", "0", "2h", "1d", "", "s", "1.5s", "-1s", "1 s",
                  "1S", "+1", "1s ", "0x10", "18446744073709551616", "18446744073709551615d"],
            ),
            (
                "--window",
                &["1s", "1000ms", "1h"],
                &["999ms", "0s", "3600001ms", "forever", ""],
            ),
            ("--ports", &["1", "63", "007"], &["0", "64", "-1", "+1", "", "3.0", "99", "3s"]),
            ("--show", &["all", "new", "scans"], &["", "All", "none", "all,new", "al"]),
            (
                "--allow",
                &["10.0.0.0/8", "10.0.0.1", "::/0", "2001:db8::1", "0.0.0.0/0", "1.2.3.4, ::1"],
                &["", "10.0.0.0/33", "::/129", "host", "10.0.0", "10.0.0.1,", ",", "fe80::1%lo",
                  "1.2.3.4 ::1", "[::1]", "10.0.0.0/255.0.0.0"],
            ),
            (
                "--block-time",
                &["1s", "24d", "576h", "forever", "10m,forever", "1,2,3,4,5,6,7,8", "forever,1s"],
                &["", "999ms", "0", "25d", "2073601", "1s,", ",1s", "1s,,2s", "Forever",
                  "1,2,3,4,5,6,7,8,9", "1s;2s"],
            ),
            (
                "--firewall",
                &["auto", "iptables", "nft", "none", "ipset"],
                &["", "pf", "IPTABLES", "nftables", "auto "],
            ),
            (
                "--listen",
                &["none", "[::]:3021", ":1", ":65535", "127.0.0.1:80", "[::1]:8080"],
                &["", ":0", ":65536", ":", "3021", "localhost:80", "::1:80", "127.0.0.1",
                  "127.0.0.1:0", "[::1]", "None", ":-1", "0:80", "[127.0.0.1]:80"],
            ),
            ("--proc", &["/proc", "/host/proc/1", "fixtures/", ".", "a b"], &["", "a\0b"]),
            ("--exec-root", &["/host"], &["", "/\0"]),
            ("--hook", &["/etc/hook", "/a b"], &["", "hook", "./hook", "/\0"]),
            ("--max-blocks-per-minute", &["1", "100000"], &["0", "100001", "", "1k"]),
            ("--widen", &["2", "256", "none"], &["0", "1", "257", "", "256/none", "NONE"]),
            ("--witness", &["auto", "none"], &["", "yes", "1", "AUTO"]),
            ("--sandbox", &["auto", "none"], &["", "yes", "1", "AUTO"]),
            (
                "--unblock",
                &["all", "192.0.2.1", "192.0.2.0/24", "2001:db8::/64"],
                &["", "ALL", "none", "192.0.2.1,192.0.2.2", "host"],
            ),
            (
                "--dry-run",
                &["1", "true", "yes", "on", "True", "YES", "0", "false", "no", "off"],
                &["", "2", "y", "maybe", "truely", "disable"],
            ),
            ("--version", &["1", "no"], &["", "0.1.0"]),
        ];
        for (name, good, bad) in cases {
            for value in good {
                let argument = format!("{name}={value}");
                accepted(&[&argument]);
            }
            for value in bad {
                let line = refused(&[&format!("{name}={value}")]);
                let said = line.contains(" is not allowed: ") || line.contains("one too many");
                assert!(line.starts_with(&format!("tcpparser: {name}: '")), "{line}");
                assert!(said, "{name}={value}: {line}");
            }
        }
    }

    #[test]
    fn every_number_of_ports() {
        for ports in 0..=300u64 {
            let text = ports.to_string();
            let result = parse(&["-p", &text]);
            assert_eq!(result.is_ok(), (1..=63).contains(&ports));
            if let Ok(options) = result {
                assert_eq!(u64::from(options.ports), ports);
            }
        }
    }

    #[rustfmt::skip]
    #[test]
    fn values_arrive() {
        check(&[
            ("-i250ms", "interval=250ms"),
            ("--window=5m", "window=5m"),
            ("-p 10", "ports=10"),
            ("--show scans", "show=scans"),
            ("--show=new", "show=new"),
            ("--allow 10.9.8.7/8 -a2001:db8::1", "allow=10.0.0.0/8,2001:db8::1/128"),
            ("--block-time 30s,forever", "block-time=30s,forever"),
            ("--firewall=none", "firewall=none"),
            ("--firewall=iptables", "firewall=iptables"),
            ("--witness none", "witness=false"),
            ("--sandbox none", "sandbox=false"),
            ("--witness none --witness=auto", ""),
            ("--widen 2", "widen=2"),
            ("--widen=none", "widen=0"),
            ("-n", "dry-run=true"),
            ("-l 127.0.0.1:9", "listen=127.0.0.1:9"),
            ("-l none", "listen=none"),
            ("-l:80", "listen=[::]:80"),
            ("--proc /host/proc/1", "proc=/host/proc/1"),
            ("--exec-root /host", "exec-root=/host"),
            ("--hook /etc/hook", "hook=/etc/hook"),
            ("--require-silent", "require-silent=true"),
            ("--max-blocks-per-minute 7", "max-blocks-per-minute=7"),
            ("--once", "once"),
            ("--once -n -p4 -i1", "once interval=1s ports=4 dry-run=true"),
        ]);
    }

    /// What stands for all values of an option is none of them.
    #[test]
    fn a_range_is_no_value() {
        for row in TABLE.iter().filter(|row| !row.is_flag()) {
            for word in row.range.split('/').filter(|word| word.contains("..")) {
                let argument = format!("--{}={word}", row.name);
                let is_path = matches!(row.id, Id::Proc | Id::ExecRoot);
                assert!(is_path || parse(&[&argument]).is_err(), "{argument}");
            }
        }
        assert!(parse(&["--block-time=1s..24d"]).is_err());
    }

    /// Every spelling of a value means the same.
    #[test]
    fn spellings() {
        let values = [
            "5s", "1s", "9", "new", "::1", "1s,2s", "none", "none", "2", "none", "", ":80", "/p",
            "/r", "/h", "", "7", "", "", "all", "", "", "", "",
        ];
        for (row, value) in TABLE.iter().zip(values) {
            let name = format!("--{}", row.name);
            let expected = if row.is_flag() {
                let expected = outcome(parse(&[&name]));
                assert_eq!(outcome(parse(&[&format!("{name}=yes")])), expected);
                expected
            } else {
                let expected = outcome(parse(&[&name, value]));
                assert_eq!(outcome(parse(&[&format!("{name}={value}")])), expected);
                expected
            };
            let variable = if row.is_flag() { "on" } else { value };
            let result = parse_bytes(&[], &[(&row.environment, variable.as_bytes())]);
            assert_eq!(outcome(result), expected, "{}", row.environment);
            assert_ne!(outcome(parse(&[])), expected, "{name}");
            let Some(letter) = row.short() else { continue };
            let short = format!("-{}", letter as char);
            if row.is_flag() {
                assert_eq!(outcome(parse(&[&short])), expected);
            } else {
                assert_eq!(outcome(parse(&[&short, value])), expected);
                assert_eq!(outcome(parse(&[&format!("{short}{value}")])), expected);
            }
        }
    }

    /// The letter takes all that follows.
    #[rustfmt::skip]
    #[test]
    fn clusters() {
        check(&[
            ("-nh", "help dry-run=true"),
            ("-ni5s", "interval=5s dry-run=true"),
            ("-np 4", "ports=4 dry-run=true"),
            ("-in", "--interval: 'n' is not allowed: 100ms..1h"),
            ("-i=5s", "--interval: '=5s' is not allowed: 100ms..1h"),
            ("-nx", "'-nx' is not an option: see --help"),
        ]);
    }

    #[rustfmt::skip]
    #[test]
    fn the_last_of_two_wins() {
        check(&[
            ("-p4 --ports=5", "ports=5"),
            ("-l:80 -l none", "listen=none"),
            ("-n --dry-run=no", ""),
            ("--block-time=1s,2s --block-time=3s", "block-time=3s"),
            ("--proc=/long --proc=/p", "proc=/p"),
            ("--once --once=no", ""),
            ("--list --list=off", ""),
            ("--firewall=ipset --firewall=nft", "firewall=nft"),
            ("--firewall=nft --firewall=ipset", "ipset=true"),
            ("-a::1 -a::2 -a::1", "allow=::1/128,::2/128,::1/128"),
        ]);
    }

    #[rustfmt::skip]
    #[test]
    fn arguments_beat_the_environment() {
        check(&[
            ("$PORTS=9 $DRY_RUN=1", "ports=9 dry-run=true"),
            ("$PORTS=9 $DRY_RUN=1 -p4 --dry-run=0", "ports=4"),
            ("$BLOCK_TIME=1h,2h --block-time=7", "block-time=7s"),
            ("$ALLOW=::2,_10.0.0.0/8", "allow=::2/128,10.0.0.0/8"),
            ("$ALLOW=::2,_10.0.0.0/8 -a::1", "allow=::1/128,::2/128,10.0.0.0/8"),
            // What is not used may be wrong.
            ("$PORTS=none $ONCE=maybe -p5 --once", "once ports=5"),
            ("$PORTS=none $ONCE=maybe --help", "help"),
        ]);
    }

    #[rustfmt::skip]
    #[test]
    fn flags_and_blanks_in_the_environment() {
        for (value, is_on) in [
            ("1", true), ("true", true), ("yes", true), ("on", true), ("TRUE", true),
            ("0", false), ("false", false), ("no", false), ("off", false), ("", false),
        ] {
            let options = from_environment("TCPPARSER_DRY_RUN", value.as_bytes()).unwrap();
            assert_eq!(options.dry_run, is_on, "{value}");
            let options = from_environment("TCPPARSER_ONCE", value.as_bytes()).unwrap();
            assert_eq!(options.action == Action::Once, is_on, "{value}");
            let options = from_environment("TCPPARSER_LIST", value.as_bytes()).unwrap();
            assert_eq!(options.action == Action::List, is_on, "{value}");
        }
        for row in TABLE.iter() {
            let options = from_environment(&row.environment, b"").unwrap();
            assert_eq!(format!("{options:?}"), outcome(parse(&[])));
        }
        assert_eq!(
            from_environment("TCPPARSER_DRY_RUN", b"maybe").unwrap_err(),
            "tcpparser: TCPPARSER_DRY_RUN: 'maybe' is not allowed: \
             1/true/yes/on or 0/false/no/off"
        );
        assert_eq!(
            from_environment("TCPPARSER_ALLOW", b"::1,\xff,::2").unwrap_err(),
            "tcpparser: TCPPARSER_ALLOW: '?' is not allowed: address or network"
        );
    }

    #[rustfmt::skip]
    #[test]
    fn messages() {
        check(&[
            ("--ports 99", "--ports: '99' is not allowed: 1..63"),
            ("-p", "--ports: a value is missing: 1..63"),
            ("--ports", "--ports: a value is missing: 1..63"),
            ("--ports --once", "--ports: '--once' is not allowed: 1..63"),
            ("--show=x", "--show: 'x' is not allowed: all/new/scans"),
            ("--block-time=1s,x", "--block-time: 'x' is not allowed: 1..8 of 1s..24d/forever"),
            ("--block-time=1,1,1,1,1,1,1,1,2", "--block-time: '2' is one too many: at most 8"),
            ("--bogus=1", "'--bogus=1' is not an option: see --help"),
            ("--port 1", "'--port' is not an option, the nearest is --ports: see --help"),
            ("--Ports=1", "'--Ports=1' is not an option, the nearest is --ports: see --help"),
            ("ports", "'ports' is not an option, the nearest is --ports: see --help"),
            ("-once", "'-once' is not an option, the nearest is --once: see --help"),
            ("--block-tiem=9", "'--block-tiem=9' is not an option, the nearest is --block-time: see --help"),
            ("--max-block-per-min=9", "'--max-block-per-min=9' is not an option, \
                the nearest is --max-blocks-per-minute: see --help"),
            ("--once x", "'x' is not an option: see --help"),
            ("-- --once", "'--' is not an option: see --help"),
            ("--=1", "'--=1' is not an option: see --help"),
            ("---once", "'---once' is not an option, the nearest is --once: see --help"),
            ("-", "'-' is not an option: see --help"),
            ("-_", "'- ' is not an option: see --help"),
            ("''", "'' is not an option: see --help"),
            ("--once=2", "--once: '2' is not allowed: 1/true/yes/on or 0/false/no/off"),
            ("--once --list", "--once: not together with --list"),
            ("--unblock=all --list", "--list: not together with --unblock"),
            ("--healthcheck --once", "--once: not together with --healthcheck"),
        ]);
    }

    /// A name in a namespace that is ours, so that it can only be misspelt.
    #[rustfmt::skip]
    #[test]
    fn unknown_variables() {
        check(&[
            ("$DRYRUN=yes", "'TCPPARSER_DRYRUN' is not an option, the nearest is TCPPARSER_DRY_RUN: see --help"),
            ("$PORT=5", "'TCPPARSER_PORT' is not an option, the nearest is TCPPARSER_PORTS: see --help"),
            ("$BLOCKTIME=", "'TCPPARSER_BLOCKTIME' is not an option, the nearest is TCPPARSER_BLOCK_TIME: see --help"),
            ("$ports=5", "'TCPPARSER_ports' is not an option, the nearest is TCPPARSER_PORTS: see --help"),
            ("$=1", "'TCPPARSER_' is not an option: see --help"),
            ("$ZZZ=1 --list", "'TCPPARSER_ZZZ' is not an option: see --help"),
            ("$ZZZ=1 --version", "version"),
        ]);
        let line = from_environment("TCPPARSER_\x1b[31mX", b"secret").unwrap_err();
        assert_eq!(line, "tcpparser: 'TCPPARSER_?[31mX' is not an option: see --help");
        let long = format!("TCPPARSER_{}", "X".repeat(10_000));
        assert!(from_environment(&long, b"").is_err());
    }

    /// What Kubernetes injects for services named tcpparser and
    /// tcpparser-metrics, and Docker for a link of the name tcpparser.
    #[test]
    fn what_orchestrators_inject_is_passed_over() {
        for (name, value) in [
            ("SERVICE_HOST", "10.96.3.7"),
            ("SERVICE_PORT", "3021"),
            ("SERVICE_PORT_METRICS", "3021"),
            ("PORT", "tcp://10.96.3.7:3021"),
            ("PORT_3021_TCP", "tcp://10.96.3.7:3021"),
            ("PORT_3021_TCP_PROTO", "tcp"),
            ("PORT_3021_TCP_PORT", "3021"),
            ("PORT_3021_TCP_ADDR", "10.96.3.7"),
            ("METRICS_SERVICE_HOST", "10.96.3.8"),
            ("METRICS_SERVICE_PORT", "80"),
            ("METRICS_PORT", "tcp://10.96.3.8:80"),
            ("METRICS_PORT_80_TCP_ADDR", "10.96.3.8"),
            ("NAME", "/web/tcpparser"),
            ("ENV_PATH", "/bin"),
            ("ENV_TCPPARSER_PORTS", "5"),
            ("BUILD_SOURCES", "1000"),
        ] {
            let name = format!("TCPPARSER_{name}");
            let options = from_environment(&name, value.as_bytes());
            assert_eq!(
                format!("{options:?}"),
                format!("{:?}", parse(&[])),
                "{name}"
            );
        }
        for (name, value) in [
            ("PORT", "3021"),
            ("PORT_TCP", "tcp://10.96.3.7:3021"),
            ("SERVICEHOST", "10.96.3.7"),
            ("PORT_X3021", "1"),
            ("RENAME", "1"),
            ("BUILDS", "1"),
        ] {
            let name = format!("TCPPARSER_{name}");
            assert!(from_environment(&name, value.as_bytes()).is_err(), "{name}");
        }
        // Other programs' are theirs.
        let entries: [&[u8]; 3] = [b"PATH=/bin", b"TCPPARSER=1", b"tcpparser_dry_run=1"];
        let mut options = Options::new();
        let parsed = options.parse_into([].into_iter(), entries.into_iter());
        assert_eq!(parsed, Ok(()));
        assert_eq!(options, accepted(&[]));
    }

    /// As getenv(3) has it.
    #[test]
    fn the_first_of_two_variables_of_one_name_counts() {
        check(&[
            ("$PORTS=4 $PORTS=5", "ports=4"),
            ("$PORTS=4 $PORTS=none", "ports=4"),
            ("$ALLOW=::1 $ALLOW=::2", "allow=::1/128"),
            ("$PORTS= $PORTS=5", ""),
        ]);
    }

    /// All that stands beside it is read as if it were not there.
    #[rustfmt::skip]
    #[test]
    fn check_reads_and_does_nothing() {
        check(&[
            ("--check", "check"),
            ("--check -p5 --once", "check ports=5"),
            ("--check=no --once", "once"),
            ("$CHECK=yes", "check"),
            ("$CHECK=yes --once", "once"),
            ("--check --help", "help"),
            ("--check --once --list", "--once: not together with --list"),
            ("$ONCE=maybe --check", "TCPPARSER_ONCE: 'maybe' is not allowed: 1/true/yes/on or 0/false/no/off"),
            ("$ALLOW=::1,host --check", "TCPPARSER_ALLOW: 'host' is not allowed: address or network"),
            ("$INTERVALL=1 --check", "'TCPPARSER_INTERVALL' is not an option, the nearest is TCPPARSER_INTERVAL: see --help"),
        ]);
    }

    #[test]
    fn underscores_are_near_dashes() {
        let line = "tcpparser: '--dry_run' is not an option, the nearest is --dry-run: see --help";
        assert_eq!(refused(&["--dry_run"]), line);
    }

    #[test]
    fn modes_exclude_each_other() {
        let modes = ["--once", "--list", "--unblock=all", "--healthcheck"];
        for one in modes {
            for other in modes.into_iter().filter(|other| *other != one) {
                assert!(refused(&[one, other]).contains(": not together with --"));
            }
            for text in ["--help", "-V"] {
                assert!(accepted(&[one, text]).action != Action::Run);
                assert_eq!(outcome(parse(&[one, text])), outcome(parse(&[text, one])));
            }
        }
        check(&[
            ("-V -h", "help"),
            // An argument decides against a variable.
            ("$LIST=1 $HELP=1 --once", "once"),
            ("$LIST=1 $HELP=1 --once=no", "help"),
        ]);
    }

    #[rustfmt::skip]
    #[test]
    fn unblock_target() {
        check(&[
            ("--unblock all", "unblock=all"),
            ("--unblock=192.0.2.7/24", "unblock=192.0.2.0/24"),
        ]);
    }

    #[test]
    fn lists_fill_to_the_last_place() {
        let network = |index: usize| format!("10.{}.{}.0/24", index / 256, index % 256);
        let mut arguments: List<String> = List::new();
        for index in 0..limits::ALLOWED {
            arguments.push(format!("--allow={}", network(index)));
        }
        let full: List<&str> = arguments.iter().map(String::as_str).collect();
        assert_eq!(accepted(&full).allow.len(), limits::ALLOWED);
        arguments.push("-a::1".to_string());
        let over: List<&str> = arguments.iter().map(String::as_str).collect();
        let most = limits::ALLOWED;
        let expected = format!("tcpparser: --allow: '::1' is one too many: at most {most}");
        assert_eq!(refused(&over), expected);
        let joined = (0..=limits::ALLOWED)
            .map(network)
            .collect::<List<_>>()
            .join(",");
        let line = from_environment("TCPPARSER_ALLOW", joined.as_bytes()).unwrap_err();
        assert!(line.contains("is one too many"), "{line}");
    }

    #[test]
    fn directories_up_to_their_length() {
        for (length, is_good) in [(1, true), (200, true), (201, false), (255, false)] {
            let path = "p".repeat(length);
            assert_eq!(parse(&["--proc", &path]).is_ok(), is_good, "{length}");
        }
        let options = parse_bytes(&[b"--proc=/\xff\xfe"], &[]).unwrap();
        assert_eq!(options.proc_directory.as_bytes(), b"/\xff\xfe");
    }

    /// Terminal escapes, invalid UTF-8 and sheer length: never echoed, never
    /// more than a line.
    #[test]
    fn hostile_values() {
        let values: [List<u8>; 5] = [
            (0..=255).collect(),
            b"\x1b[2J\x1b]0;owned\x07\r\n".to_vec(),
            "\u{202e}\u{0}ä€".as_bytes().to_vec(),
            std::vec![b'9'; 10_000],
            std::vec![b','; 10_000],
        ];
        for value in &values {
            line(&parse_bytes(&[value], &[]).unwrap_err());
            let dashed = [b"--", value.as_slice()].concat();
            line(&parse_bytes(&[&dashed], &[]).unwrap_err());
            // Any byte but NUL is fine in a directory's name.
            let refusing = |row: &&TextRow| !matches!(row.id, Id::Proc | Id::ExecRoot);
            for row in TABLE.iter().filter(refusing) {
                let argument = [b"--", row.name.as_bytes(), b"=", value].concat();
                line(&parse_bytes(&[&argument], &[]).unwrap_err());
                assert!(from_environment(&row.environment, value).is_err());
            }
        }
        let line = refused(&["-i", "\u{1b}[31mred"]);
        assert_eq!(
            line,
            "tcpparser: --interval: '?[31mred' is not allowed: 100ms..1h"
        );
        let line = refused(&["-i", &"x".repeat(10_000)]);
        assert!(line.contains(&format!("'{}'", "x".repeat(40))), "{line}");
    }

    /// Random words from a seed: whatever is accepted lies within its range,
    /// whatever is refused is one clean line.
    #[test]
    fn random_command_lines() {
        #[rustfmt::skip]
        let pieces = [
            "--", "-", "=", "i", "n", "h", "V", "p", "a", "w", "l", "interval", "ports", "once",
            "show", "allow", "block-time", "listen", "proc", "firewall", "window", "1", "63",
            "64", "5s", "1h", "24d", "forever", ",", "all", "new", "none", "::1", "/8",
            "10.0.0.0", ":80", "[::]", "\u{1b}", "\u{ff}", "",
        ];
        let mut state: u64 = 0x2545_f491_4f6c_dd1d;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 16) as usize % below
        };
        let mut accepted = 0;
        for _ in 0..100_000 {
            let mut arguments: List<List<u8>> = List::new();
            for _ in 0..random(4) {
                let mut argument = List::new();
                if random(4) != 0 {
                    let name = TABLE[random(TABLE.len())].name;
                    argument.extend_from_slice(format!("--{name}=").as_bytes());
                }
                for _ in 0..=random(3) * random(2) {
                    argument.extend_from_slice(pieces[random(pieces.len())].as_bytes());
                }
                if random(40) == 0 {
                    argument.push(random(256) as u8);
                }
                arguments.push(argument);
            }
            let arguments: List<&[u8]> = arguments.iter().map(List::as_slice).collect();
            let variable = TABLE[random(TABLE.len())].environment.as_str();
            let value = pieces[random(pieces.len())].as_bytes();
            match parse_bytes(&arguments, &[(variable, value)]) {
                Err(error) => assert!(line(&error).starts_with("tcpparser: ")),
                Ok(options) => {
                    accepted += usize::from(!arguments.is_empty());
                    assert!((1..=63).contains(&options.ports));
                    assert!(options.interval >= Duration::from_millis(100));
                    assert!(options.interval.max(options.window) <= seconds(3_600));
                    assert!(options.window >= seconds(1));
                    assert!(!options.block_times.is_empty());
                    for length in options.block_times.iter().flatten() {
                        assert!(*length >= seconds(1) && *length <= seconds(24 * 86_400));
                    }
                    assert!(!options.proc_directory.is_empty());
                    assert!(options.listen.is_none_or(|endpoint| endpoint.port != 0));
                }
            }
        }
        assert!(accepted > 200, "only {accepted} said anything");
    }

    #[test]
    fn help_fits_a_screen() {
        let help = help();
        assert!(help.is_ascii() && help.ends_with('\n'));
        assert!(help.lines().count() <= 25, "{help}");
        for line in help.lines() {
            assert!(line.len() <= 80, "{} columns: {line}", line.len());
            assert_eq!(line.trim_end(), line);
        }
        for row in TABLE.iter() {
            let name = format!("--{}", row.name);
            let is_own = |line: &&str| {
                let own = line.get(6..).and_then(|own| own.split(' ').next());
                own == Some(&name)
            };
            let line = help.lines().find(is_own).expect(&name);
            assert_eq!(line.find(row.help), Some(HELP_NAMES), "{line}");
            assert!(
                line.contains(row.range) && line.contains(row.default),
                "{line}"
            );
        }
    }

    #[test]
    fn version_is_one_line() {
        let mut text: Text<256> = Text::new();
        write_version(&mut text);
        let line = std::str::from_utf8(text.as_bytes()).unwrap();
        let (line, rest) = line.split_once('\n').unwrap();
        assert_eq!(rest, "");
        let words: List<&str> = line.split(' ').collect();
        assert_eq!(words.len(), 4, "{line}");
        assert_eq!(words[..2], ["tcpparser", env!("CARGO_PKG_VERSION")]);
        assert_eq!(words[2].split('-').count(), 4, "a target triple: {line}");
    }

    /// dist/tcpparser.8 documents each option as the parser knows it, and no
    /// other.
    #[test]
    fn the_man_page_documents_every_option() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/tcpparser.8");
        let page = std::fs::read_to_string(path).unwrap();
        let (_, section) = page.split_once("\n.Sh OPTIONS\n").unwrap();
        let (section, _) = section.split_once("\n.Sh ").unwrap();
        let mut items = section.split("\n.It Fl ").skip(1);
        for row in TABLE.iter() {
            let short = row.short().map(|letter| format!("{} , ", letter as char));
            let argument = match row.argument {
                "" => String::new(),
                argument => format!(" Ar {argument}"),
            };
            let names = format!("{}-{}{argument}", short.unwrap_or_default(), row.name);
            let (head, body) = items.next().expect(&names).split_once('\n').unwrap();
            assert_eq!(head, names);
            let allowed = match (row.range, row.default) {
                ("", "") => String::new(),
                (range, "") => format!("Allowed: {range}."),
                (range, default) => format!("Allowed: {range}, default: {default}."),
            };
            let line = body.lines().find(|line| line.starts_with("Allowed:"));
            assert_eq!(line.unwrap_or_default(), allowed, "{names}");
        }
        assert_eq!(items.next(), None);
    }

    /// The table of README.md documents each option as the parser knows it.
    #[test]
    fn readme_documents_every_option() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        let cell = |text: &str| {
            if text.is_empty() {
                "-".to_string()
            } else {
                format!("`{text}`")
            }
        };
        for row in TABLE.iter() {
            let mut names = format!("`--{} {}`", row.name, row.argument).replace(" `", "`");
            if let Some(letter) = row.short() {
                names = format!("`-{}`, {names}", letter as char);
            }
            let start = format!("| {names} | {} | {} | ", cell(row.default), cell(row.range));
            let is_there = readme.lines().any(|line| line.starts_with(&start));
            assert!(is_there, "README.md has no line {start}");
        }
    }

    fn dist(name: &str) -> String {
        let path = format!("{}/dist/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(path).unwrap()
    }

    /// A settings file's lines that `value_of` finds a value in, joined by
    /// commas, and the text above the first of them.
    fn setting(text: &str, value_of: impl Fn(&str) -> Option<String>) -> (String, String) {
        let lines: List<&str> = text.lines().collect();
        let at = lines.iter().position(|line| value_of(line).is_some());
        let at = at.expect("a line for each option");
        let is_comment = |line: &&&str| line.trim_start().starts_with("# ");
        let above: List<&str> = lines[..at]
            .iter()
            .rev()
            .take_while(is_comment)
            .copied()
            .collect();
        let values: List<String> = lines.iter().filter_map(|line| value_of(line)).collect();
        (values.join(","), above.join(" "))
    }

    /// The settings of dist/ name each option that is no action, with its range
    /// and default, and the script for procd hands each on as what it is.
    #[test]
    fn settings_files_name_every_option() {
        let (settings, uci, script) = (
            dist("tcpparser.default"),
            dist("tcpparser.uci"),
            dist("tcpparser.procd"),
        );
        let is_setting = |row: &&TextRow| !row.id.is_action();
        for row in TABLE.iter().filter(is_setting) {
            let in_shell = |line: &str| {
                let rest = line.strip_prefix(&format!("#{}=", row.environment))?;
                Some(rest.to_string())
            };
            let name = row.name.replace('-', "_");
            let in_uci = |line: &str| {
                let line = line.trim_start().trim_start_matches('#');
                let line = line
                    .strip_prefix("option ")
                    .or_else(|| line.strip_prefix("list "));
                let value = line?.strip_prefix(&format!("{name} '"))?.strip_suffix('\'');
                value.map(str::to_string)
            };
            for (value, above) in [setting(&settings, in_shell), setting(&uci, in_uci)] {
                assert!(above.contains(row.range), "--{}: {above}", row.name);
                // A service's log is to stay short.
                let default = if row.id == Id::Show {
                    "scans"
                } else {
                    row.default
                };
                assert!(default.is_empty() || value == default, "{name}: {value}");
            }
            let kind = match (row.is_flag(), row.is_list()) {
                (true, _) => "FLAGS='",
                (_, true) => "LISTS='",
                _ => "VALUES='",
            };
            let line = script
                .lines()
                .find_map(|line| line.strip_prefix(kind))
                .unwrap();
            let mut names = line.trim_end_matches('\'').split(' ');
            assert!(names.any(|other| other == name), "{name} in {kind}{line}");
        }
        let count = settings.matches("\n#TCPPARSER_").count();
        assert_eq!(count, TABLE.iter().filter(is_setting).count());
    }
}
