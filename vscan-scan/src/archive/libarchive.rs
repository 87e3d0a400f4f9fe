//! RAR by libarchive: memory to memory, one format, no filter, no file, no program. The only foreign code
//! among the decoders, and the only unsafe code beside the process's own; it runs in the sandboxed worker.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::{self, Read};
use std::marker::PhantomData;
use std::ptr::NonNull;

/// `struct archive` (archive.h), opaque.
#[repr(C)]
struct Archive {
    _opaque: [u8; 0],
}

/// `struct archive_entry` (archive_entry.h), opaque.
#[repr(C)]
struct Entry {
    _opaque: [u8; 0],
}

/// ARCHIVE_EOF of archive.h.
const EOF: c_int = 1;
/// ARCHIVE_WARN: what is below it has failed, from it on the entry can be used.
const WARN: c_int = -20;
/// AE_IFREG of archive_entry.h.
const REGULAR: libc::mode_t = 0o100_000;

#[cfg(feature = "engine")]
unsafe extern "C" {
    /// tzset(3); reads the time zone's file, once.
    safe fn tzset();
}

#[link(name = "archive")]
unsafe extern "C" {
    fn archive_read_new() -> *mut Archive;
    fn archive_read_free(archive: *mut Archive) -> c_int;
    fn archive_read_support_format_rar(archive: *mut Archive) -> c_int;
    fn archive_read_support_format_rar5(archive: *mut Archive) -> c_int;
    fn archive_read_open_memory(archive: *mut Archive, data: *const c_void, len: usize) -> c_int;
    fn archive_read_next_header(archive: *mut Archive, entry: *mut *mut Entry) -> c_int;
    fn archive_read_data(archive: *mut Archive, buffer: *mut c_void, len: usize) -> isize;
    fn archive_read_has_encrypted_entries(archive: *mut Archive) -> c_int;
    fn archive_errno(archive: *mut Archive) -> c_int;
    fn archive_error_string(archive: *mut Archive) -> *const c_char;
    fn archive_entry_pathname(entry: *mut Entry) -> *const c_char;
    fn archive_entry_pathname_utf8(entry: *mut Entry) -> *const c_char;
    fn archive_entry_filetype(entry: *mut Entry) -> libc::mode_t;
    fn archive_entry_is_encrypted(entry: *mut Entry) -> c_int;
}

/// What a member's header says.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) file: bool,
    pub(crate) encrypted: bool,
}

/// A RAR archive in memory.
pub(crate) struct Rar<'a> {
    archive: NonNull<Archive>,
    data: PhantomData<&'a [u8]>,
}

/// Lets the C library load what it loads when names and times are converted, before a sandbox forbids to open files.
#[cfg(feature = "engine")]
pub(crate) fn prepare() {
    // SAFETY: the strings end in NUL; called before any thread is started, as setlocale(3) and setenv(3) ask. The
    // converters are closed at once.
    unsafe {
        // With a zone by name glibc looks at no file when the next time is converted.
        libc::setenv(c"TZ".as_ptr(), c"UTC0".as_ptr(), 1);
        tzset();
        libc::setlocale(libc::LC_CTYPE, c"C.UTF-8".as_ptr());
        for to in [c"UTF-8", c"ANSI_X3.4-1968"] {
            for from in [c"UTF-8", c"UTF-16BE", c"UTF-16LE"] {
                let converter = libc::iconv_open(to.as_ptr(), from.as_ptr());
                if converter as isize != -1 {
                    libc::iconv_close(converter);
                }
            }
        }
    }
}

impl<'a> Rar<'a> {
    pub(crate) fn open(data: &'a [u8]) -> io::Result<Self> {
        // SAFETY: a new archive, or null.
        let archive = NonNull::new(unsafe { archive_read_new() });
        let archive = archive.ok_or(io::ErrorKind::OutOfMemory)?;
        let rar = Self { archive, data: PhantomData };
        // SAFETY: the archive lives as long as `rar`; the data as long as 'a, which outlives it; libarchive only reads
        // it.
        let opened = unsafe {
            archive_read_support_format_rar(archive.as_ptr());
            archive_read_support_format_rar5(archive.as_ptr());
            archive_read_open_memory(archive.as_ptr(), data.as_ptr().cast(), data.len())
        };
        if opened < WARN { Err(rar.error()) } else { Ok(rar) }
    }

    /// The next member; None at the end. Its data is then read from `self`.
    pub(crate) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut entry = std::ptr::null_mut();
        // SAFETY: the archive is open; the entry belongs to it and is valid up to the next call, which needs `self`.
        let result = unsafe { archive_read_next_header(self.archive.as_ptr(), &mut entry) };
        if result == EOF {
            return Ok(None);
        }
        if result < WARN || entry.is_null() {
            return Err(self.error());
        }
        // SAFETY: the entry is valid here; its strings are copied before anything else is called.
        unsafe {
            let utf8 = archive_entry_pathname_utf8(entry);
            let name = if utf8.is_null() { archive_entry_pathname(entry) } else { utf8 };
            Ok(Some(Member {
                name: text(name),
                file: archive_entry_filetype(entry) == REGULAR,
                encrypted: archive_entry_is_encrypted(entry) != 0,
            }))
        }
    }

    /// True when a member or the headers are known to be encrypted.
    pub(crate) fn encrypted(&self) -> bool {
        // SAFETY: the archive is open.
        unsafe { archive_read_has_encrypted_entries(self.archive.as_ptr()) > 0 }
    }

    fn error(&self) -> io::Error {
        // SAFETY: the archive is valid; the string belongs to it and is copied.
        let (number, why) = unsafe {
            let archive = self.archive.as_ptr();
            (archive_errno(archive), text(archive_error_string(archive)))
        };
        let kind = match number {
            libc::ENOMEM => io::ErrorKind::OutOfMemory,
            _ => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, format!("rar: {why}"))
    }
}

impl Read for Rar<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: the buffer has room for as many bytes as are asked for.
        let read = unsafe {
            archive_read_data(self.archive.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
        };
        usize::try_from(read).map_err(|_| self.error())
    }
}

impl Drop for Rar<'_> {
    fn drop(&mut self) {
        // SAFETY: freed once, here.
        unsafe { archive_read_free(self.archive.as_ptr()) };
    }
}

/// # Safety
/// Null, or a string that ends in NUL.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: see above.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
