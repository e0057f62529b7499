//! Long output, compared with files of src/testing/golden.

use std::{env, format, fs};

/// Fails at the first line that differs; with GOLDEN=renew the file is written
/// anew, for a reader of the difference to judge.
pub fn assert_golden(name: &str, text: &str) {
    let path = format!("{}/src/testing/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if env::var_os("GOLDEN").is_some_and(|wish| wish == "renew") {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    let lines = text.lines().zip(golden.lines()).zip(1..);
    for ((line, expected), number) in lines {
        assert_eq!(line, expected, "{path}:{number}; {RENEW}");
    }
    assert_eq!(text.len(), golden.len(), "{path} is cut; {RENEW}");
}

const RENEW: &str = "GOLDEN=renew cargo test writes it anew";
