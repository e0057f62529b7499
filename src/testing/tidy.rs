//! Rules about the source text that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

struct Source {
    /// Below src, such as `daemon/mod.rs`.
    name: String,
    text: String,
}

impl Source {
    /// The module of lib.rs the file belongs to.
    fn module(&self) -> &str {
        let first = self.name.split('/').next().unwrap_or_default();
        first.trim_end_matches(".rs")
    }

    fn is_test(&self) -> bool {
        self.module() == "testing"
    }

    /// What ends up in the program: no tests, no comments.
    fn product(&self) -> impl Iterator<Item = (usize, &str)> {
        let whole = self.text.lines().zip(1..);
        let lines = whole.take_while(|(line, _)| {
            !line.starts_with("#[cfg(test)]") || self.name == "main.rs" || self.name == "lib.rs"
        });
        lines.map(|(line, number)| (number, without_comment(line)))
    }

    fn comments(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().zip(1..);
        lines.filter_map(|(line, number)| {
            let at = without_comment(line).len();
            line.get(at..)
                .filter(|rest| !rest.is_empty())
                .map(|rest| (number, rest))
        })
    }
}

/// `line` up to `//`, unless that stands in a string such as `"http://"`.
fn without_comment(line: &str) -> &str {
    let mut is_text = false;
    let bytes = line.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'"' if at == 0 || !matches!(bytes[at - 1], b'\\' | b'\'') => is_text = !is_text,
            b'/' if !is_text && bytes.get(at + 1) == Some(&b'/') => return &line[..at],
            _ => {}
        }
    }
    line
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(folder).unwrap();
        let paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        for path in paths {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                let text = fs::read_to_string(&path).unwrap();
                found.push(Source { name, text });
            }
        }
    }
    assert!(found.len() > 20, "the sources are there");
    found
}

fn assert_none(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// Where `word` stands in `line` as a word of its own.
fn has_word(line: &str, word: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].bytes().last();
        let after = line[at + word.len()..].bytes().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

/// lib.rs lists the modules in the order in which data flows.
#[test]
fn modules_import_from_above_only() {
    let sources = sources();
    let library = sources
        .iter()
        .find(|source| source.name == "lib.rs")
        .unwrap();
    let modules = library.text.lines();
    let order: Vec<&str> = modules
        .map(|line| line.strip_prefix("pub ").unwrap_or(line))
        .filter_map(|line| line.strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    let place = |module: &str| order.iter().position(|other| *other == module);
    let mut broken = Vec::new();
    for source in &sources {
        let module = source.module();
        if ["main", "lib", "testing", "daemon"].contains(&module) {
            continue;
        }
        let own = place(module).unwrap_or_else(|| panic!("{module} is not in lib.rs"));
        for (number, line) in source.product() {
            for (at, path) in line.match_indices("crate::") {
                let rest = &line[at + path.len()..];
                let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
                let imported = &rest[..end.unwrap_or(rest.len())];
                if place(imported).is_some_and(|above| above > own) {
                    broken.push(format!("{}:{number} imports {imported}", source.name));
                }
            }
        }
    }
    assert_none(broken);
}

/// lib.rs says of each file and folder what it is for, and of no other. One file
/// a part is what daemon and tools have; what is for tests alone explains itself.
#[test]
fn the_map_is_whole() {
    let sources = sources();
    let library = sources
        .iter()
        .find(|source| source.name == "lib.rs")
        .unwrap();
    let (_, map) = library.text.split_once("//! What stands where").unwrap();
    let (map, _) = map.split_once("//! ```\n").unwrap();
    let mut documented = Vec::new();
    let mut folder = "";
    for line in map.lines().filter_map(|line| line.strip_prefix("//! ")) {
        let name = line.trim_start().split(' ').next().unwrap();
        if let Some(of_folder) = name.strip_suffix('/') {
            folder = of_folder;
            documented.push(name.to_owned());
        } else if name.ends_with(".rs") {
            match line.len() - line.trim_start().len() {
                0 => documented.push(name.to_owned()),
                2 => documented.push(format!("{folder}/{name}")),
                _ => {}
            }
        }
    }
    let mut wanted: Vec<String> = sources
        .iter()
        .filter_map(|source| match source.name.split_once('/') {
            Some(("firewall", "mod.rs")) => Some("firewall/".to_owned()),
            Some(("firewall", _)) => Some(source.name.clone()),
            Some((folder, _)) => Some(format!("{folder}/")),
            None if source.name == "lib.rs" => None,
            None => Some(source.name.clone()),
        })
        .collect();
    wanted.sort();
    wanted.dedup();
    documented.sort();
    assert_eq!(documented, wanted);
}

#[test]
fn unsafe_stands_in_one_file() {
    let mut broken = Vec::new();
    for source in sources() {
        if ["linux.rs", "main.rs"].contains(&source.name.as_str()) || source.is_test() {
            continue;
        }
        for (line, number) in source.text.lines().zip(1..) {
            if has_word(without_comment(line), "unsafe") {
                broken.push(format!("{}:{number} {line}", source.name));
            }
        }
    }
    assert_none(broken);
}

/// The link proves that no panic is left in a release build; the source does
/// not even try. core::fmt would cost more than all the rest.
#[test]
fn no_formatting_and_no_panic() {
    const WORDS: [&str; 12] = [
        "core::fmt",
        "format!",
        "write!",
        "println!",
        ".unwrap()",
        ".expect(\"",
        "panic!",
        "unreachable!",
        "todo!",
        "sort_unstable",
        "RefCell",
        "\nstatic mut",
    ];
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        for (number, line) in source.product() {
            for word in WORDS {
                // Compile-time proofs may panic.
                if format!("\n{line}").contains(word) && !line.contains("const _") {
                    broken.push(format!("{}:{number} {word}", source.name));
                }
            }
        }
    }
    assert_none(broken);
}

/// Only numbers index, and only arrays whose length the compiler knows. In a
/// const fn the compiler does the indexing.
#[test]
fn no_indexing_is_left_to_the_linker() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test()) {
        let mut is_const = false;
        for (number, line) in source.product() {
            if has_word(line, "fn") {
                is_const = line.contains("const fn ");
            }
            if !is_const && source.name != "main.rs" && indexes(line) {
                broken.push(format!("{}:{number} {}", source.name, line.trim()));
            }
        }
    }
    assert_none(broken);
}

/// A bracket behind a name, a call or another bracket, with something else
/// than a number in it.
fn indexes(line: &str) -> bool {
    let bytes = line.as_bytes();
    let mut is_text = false;
    for (at, byte) in bytes.iter().enumerate().skip(1) {
        let before = bytes[at - 1];
        if *byte == b'"' && !matches!(before, b'\\' | b'\'') {
            is_text = !is_text;
        }
        let is_index = before.is_ascii_alphanumeric() || matches!(before, b'_' | b')' | b']');
        if is_text || *byte != b'[' || !is_index {
            continue;
        }
        // A slice pattern behind `ref` or a lifetime has a blank before it.
        let inside = line[at + 1..].split(']').next().unwrap_or_default();
        if !inside.is_empty() && !inside.bytes().all(|byte| byte.is_ascii_digit()) {
            return true;
        }
    }
    false
}

#[test]
fn main_stays_small() {
    let sources = sources();
    let main = sources
        .iter()
        .find(|source| source.name == "main.rs")
        .unwrap();
    let count = main.text.lines().count();
    assert!(count < 60, "main.rs has {count} lines");
}

/// A narrow door can be faked whole.
#[test]
fn the_kernel_has_few_verbs() {
    const VERBS: usize = 30;
    let sources = sources();
    let kernel = sources.iter().find(|source| source.name == "kernel.rs");
    let (_, verbs) = kernel
        .unwrap()
        .text
        .split_once("\npub trait Kernel {")
        .unwrap();
    let verbs = verbs.split("\n}").next().unwrap();
    let count = verbs.matches("\n    fn ").count();
    assert!((10..=VERBS).contains(&count), "{count} verbs");
}

/// Parts are handed the time; but for the loop only what waits reads a clock.
#[test]
fn clocks_are_read_where_waiting_is_done() {
    let mut broken = Vec::new();
    for source in sources() {
        let is_part = ["daemon", "tools"].contains(&source.module());
        let waits = source.product().any(|(_, line)| line.contains(".poll("));
        if !is_part || waits || source.name == "daemon/clock.rs" {
            continue;
        }
        for (number, line) in source.product() {
            let reads = [
                ".clock(",
                "cpu_time(kernel)",
                "Moment::read(",
                "now(kernel)",
            ];
            if reads.iter().any(|read| line.contains(read)) {
                broken.push(format!("{}:{number} {}", source.name, line.trim()));
            }
        }
    }
    assert_none(broken);
}

/// Comments speak of the kernel, not of how the program came about.
#[test]
fn comments_have_no_history() {
    const WORDS: [&str; 8] = [
        "issue", "issues", "AI", "LLM", "prompt", "TODO", "FIXME", "/tmp/",
    ];
    let mut broken = Vec::new();
    for source in sources() {
        for (number, comment) in source.comments() {
            let has_tale = WORDS.iter().any(|word| has_word(comment, word));
            let has_session = has_word(&comment.replace("SSH session", ""), "session");
            if (has_tale || has_session) && source.name != "testing/tidy.rs" {
                broken.push(format!("{}:{number} {comment}", source.name));
            }
        }
    }
    assert_none(broken);
}

/// The rules find what they look for.
#[test]
fn rules_can_fail() {
    assert!(indexes("let a = table[index];"));
    assert!(indexes("f(&bytes[..count])"));
    assert!(!indexes("let [a, b] = pair; v[0] ^= v[1]; let c: [u8; 4];"));
    assert!(!indexes("out.put(b\"a[i]\");"));
    assert_eq!(without_comment("a(\"//\") // b"), "a(\"//\") ");
    assert!(has_word("an unsafe block", "unsafe"));
    assert!(!has_word("deny(unsafe_code)", "unsafe"));
}
