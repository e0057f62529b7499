//! Which files may be opened.

use crate::kernel::{Errno, File, Kernel, Link, Path};
use crate::text::split;

/// Opens a file of rows or settings and refuses (EINVAL) what is neither on
/// procfs nor a regular file: a FIFO, a device, a directory.
pub(crate) fn open_regular(kernel: &mut impl Kernel, path: &Path) -> Result<File, Errno> {
    let file = kernel.open(path, Link::Follow)?;
    keep_if(kernel, file, kind(file) == libc::S_IFREG, Errno::EINVAL)
}

/// Opens a file below a folder where others may write, and refuses (EPERM)
/// what any user but root may have put there or may change.
pub(crate) fn open_of_root(kernel: &mut impl Kernel, path: &Path) -> Result<File, Errno> {
    let bytes = path.as_bytes();
    // A slash behind it would have a link followed all the same.
    let end = bytes.iter().rposition(|byte| *byte == b'/');
    let folder = bytes.get(..end.unwrap_or(0)).unwrap_or_default();
    // No user but root moves root's folder out of a sticky one.
    let folder = open_if_of_root(kernel, &Path::from_bytes(folder))?;
    kernel.close(folder.descriptor);
    open_if_of_root(kernel, path)
}

/// In a sticky folder others can but link to files of root's (proc_sys_fs(5),
/// protected_hardlinks).
fn open_if_of_root(kernel: &mut impl Kernel, path: &Path) -> Result<File, Errno> {
    let file = kernel.open(path, Link::Refuse)?;
    let is_closed = file.mode & (libc::S_IWGRP | libc::S_IWOTH) == 0;
    let is_safe = match kind(file) {
        libc::S_IFDIR => is_closed || file.mode & libc::S_ISVTX != 0,
        libc::S_IFREG => is_closed && file.is_linked_once,
        _ => false,
    };
    keep_if(kernel, file, is_safe && file.owner == 0, Errno::EPERM)
}

/// Refuses (EPERM) what is no program that root owns and nobody else may write to,
/// in folders likewise, and symbolic links. An ACL that lets others write shows in
/// the rights of the group (acl(5)).
pub(super) fn check_program(kernel: &mut impl Kernel, path: &Path) -> Result<(), Errno> {
    let mut part = Path::new();
    let mut mode = 0;
    for word in split(path.as_bytes(), b'/') {
        // The first word is empty.
        if part.as_bytes() != b"/" {
            part.put_byte(b'/');
        }
        part.put(word);
        let file = kernel.open(&part, Link::Refuse)?;
        kernel.close(file.descriptor);
        mode = file.mode;
        if file.owner != 0 || mode & (libc::S_IWGRP | libc::S_IWOTH) != 0 {
            return Err(Errno::EPERM);
        }
    }
    let is_program = mode & (libc::S_IFMT | libc::S_IXUSR) == libc::S_IFREG | libc::S_IXUSR;
    if is_program {
        Ok(())
    } else {
        Err(Errno::EPERM)
    }
}

fn kind(file: File) -> u32 {
    file.mode & libc::S_IFMT
}

fn keep_if(
    kernel: &mut impl Kernel,
    file: File,
    is_safe: bool,
    refusal: Errno,
) -> Result<File, Errno> {
    if is_safe {
        return Ok(file);
    }
    kernel.close(file.descriptor);
    Err(refusal)
}
