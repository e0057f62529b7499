//! Checks build-time overrides of src/limits.rs, passes the program its target
//! and revision, and sets the link options of the binary.

use std::{env, fs, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=src/limits.rs");
    check_overrides();

    let target = env::var("TARGET").unwrap_or_default();
    println!("cargo:rustc-env=TCPPARSER_TARGET={target}");
    println!("cargo:rustc-env=TCPPARSER_REVISION={}", revision());

    // A no_std crate links no C library by itself.
    println!("cargo:rustc-link-arg-bins=-lc");
    // One page less on disk and in memory for each segment that is merged.
    tell_linker(&["-z", "noseparate-code"]);
    tell_linker(&["-z", "norelro", "-z", "now"]);
    if env::var("PROFILE").as_deref() == Ok("release") {
        drop_unread_sections();
    }
    let is_musl = env::var("CARGO_CFG_TARGET_ENV").as_deref() == Ok("musl");
    if is_musl && rustc_minor() >= 93 {
        // 8 bytes for up to 64 relocations instead of 24 for each one: musl applies
        // DT_RELR to itself from 1.2.4 on (its WHATSNEW); rustc brings 1.2.5 since
        // 1.93, before that 1.2.3.
        tell_linker(&["-z", "pack-relative-relocs"]);
    }
}

fn links_with_lld() -> bool {
    env::var("RUSTC_LINKER").is_ok_and(|linker| linker.ends_with("lld"))
}

/// Options of the linker itself. Where a C compiler stands in for it each one is
/// announced (`-Wl,` would split a path at its commas); the Makefile and `make
/// dist` ask rustc's own rust-lld.
fn tell_linker(options: &[&str]) {
    for option in options {
        if !links_with_lld() {
            println!("cargo:rustc-link-arg-bins=-Xlinker");
        }
        println!("cargo:rustc-link-arg-bins={option}");
    }
}

/// Nothing unwinds, but core and musl come with their tables; those of the
/// compiler's start files are referred to and stay. The kernel loads segments:
/// sections serve debuggers, and --version names the build. Functions that are alike
/// become one, since none is distinguished from another by its address.
fn drop_unread_sections() {
    let script = env::var("OUT_DIR").expect("cargo sets OUT_DIR") + "/drop.ld";
    let text = "SECTIONS { /DISCARD/ : { *(EXCLUDE_FILE(*crtbegin*.o *crtend*.o) .eh_frame) \
                *(.comment) } }\nINSERT AFTER .rodata;\n";
    fs::write(&script, text).expect("OUT_DIR is writable");
    tell_linker(&["-T", &script, "--no-eh-frame-hdr", "--build-id=none"]);
    if links_with_lld() {
        tell_linker(&["--no-rosegment", "--icf=all", "-O2"]);
        // Data begin with a page wherever the code ends, so that an idle daemon does
        // not write to one more. Elsewhere pages can have 64 KiB, in the file too.
        if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|processor| processor.starts_with("x86")) {
            tell_linker(&["-z", "separate-loadable-segments"]);
        }
        if rustc_minor() >= 93 {
            // Functions that are alike stand together: half a percent less when
            // packed. Known to lld since LLVM 21.
            tell_linker(&["--bp-compression-sort=function"]);
        }
        let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
        if !flags.contains("strip=none") {
            tell_linker(&["-z", "nosectionheader"]);
        }
    }
}

/// The 93 of rustc 1.93.0; 0 where that is not known.
fn rustc_minor() -> u32 {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let version = version.unwrap_or_default();
    let minor = version
        .strip_prefix("rustc 1.")
        .and_then(|rest| rest.split('.').next()?.parse().ok());
    minor.unwrap_or(0)
}

/// A misspelt override must not be ignored silently.
fn check_overrides() {
    let limits = fs::read_to_string("src/limits.rs").expect("src/limits.rs is readable");
    let mut names = Vec::new();
    for line in limits.lines() {
        let Some((name, rest)) = line.trim().split_once(": ") else {
            continue;
        };
        let is_name = name
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b == b'_' || b.is_ascii_digit());
        if is_name && (rest.starts_with("usize =") || rest.starts_with("Duration =")) {
            names.push(format!("TCPPARSER_BUILD_{name}"));
        }
    }
    for name in &names {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for (name, _) in env::vars() {
        if name.starts_with("TCPPARSER_BUILD_") && !names.contains(&name) {
            panic!("{name} names no limit of src/limits.rs");
        }
    }
}

/// The revision: from the environment, else from git, else unknown. Without a
/// `.git` of its own an unpacked tree may lie in another project's repository.
fn revision() -> String {
    println!("cargo:rerun-if-env-changed=TCPPARSER_REVISION");
    if let Ok(revision) = env::var("TCPPARSER_REVISION") {
        return revision.replace(
            |sign: char| !sign.is_ascii_graphic() || "\"\\|".contains(sign),
            "-",
        );
    }
    if fs::metadata(".git").is_err() {
        return "unknown".to_owned();
    }
    for path in [".git/HEAD", ".git/logs/HEAD"] {
        if fs::metadata(path).is_ok() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let git = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output();
    match git {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".to_owned(),
    }
}
