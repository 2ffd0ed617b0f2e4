//! What every function of the header has in common: errors become numbers and texts, panics become -EIO,
//! and a call out of `write_u32` is refused.
#![allow(unsafe_code)] // exported names

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, CString, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nix::errno::Errno;
use papr_intc_frontend::Error;

/// Why a call failed.
#[derive(Debug)]
pub struct Fail {
    errno: i32,
    text: String,
}

impl Fail {
    /// With this number and text.
    pub fn new(errno: Errno, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            errno: errno as i32,
            text,
        }
    }

    /// An argument that cannot be meant.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Errno::EINVAL, text)
    }
}

impl From<Error> for Fail {
    fn from(e: Error) -> Self {
        // The number may be the daemon's: what is no errno must not look like success.
        let errno = match e.errno() {
            n @ 1..4096 => n,
            _ => Errno::EPROTO as i32,
        };
        let text = e.to_string();
        Self { errno, text }
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
    /// This thread is inside `write_u32`.
    static STORING: Cell<bool> = const { Cell::new(false) };
}

/// Runs a function of the header: its result, or a negative errno.
pub fn call(body: impl FnOnce() -> Result<c_int, Fail>) -> c_int {
    if STORING.try_with(Cell::get).unwrap_or(false) {
        let why = "called from write_u32, in the middle of a step of the data plane";
        return failed(Fail::new(Errno::EDEADLK, why));
    }
    look(body)
}

/// As [`call`], for what starts nothing and may be asked at any time.
pub fn look(body: impl FnOnce() -> Result<c_int, Fail>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(n)) => n,
        Ok(Err(fail)) => failed(fail),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
            let text = format!("a defect of papr-intc: {}", said.unwrap_or("a panic"));
            failed(Fail::new(Errno::EIO, text))
        }
    }
}

/// As [`call`], for what has no result but success.
pub fn done(body: impl FnOnce() -> Result<(), Fail>) -> c_int {
    call(|| body().map(|()| 0))
}

/// Runs the VMM's `write_u32`.
pub fn storing<T>(store: impl FnOnce() -> T) -> T {
    let _ = STORING.try_with(|s| s.set(true));
    let stored = store();
    let _ = STORING.try_with(|s| s.set(false));
    stored
}

fn failed(fail: Fail) -> c_int {
    let text = fail.text.replace('\0', " ");
    let text = CString::new(text).unwrap_or_default();
    // An error: the thread is ending.
    let _ = LAST.try_with(|last| *last.borrow_mut() = text);
    -fail.errno
}

/// Why the last function of this header that failed on this thread did so: one line, UTF-8. Empty if
/// none has failed. Valid until the next one fails on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr())
        .unwrap_or(c"".as_ptr())
}

/// Version of the library, for people.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        LAST.with(|last| last.borrow().to_string_lossy().into_owned())
    }

    #[test]
    fn a_panic_is_eio_with_its_words() {
        assert_eq!(done(|| panic!("a bad {}", "day")), -(Errno::EIO as i32));
        assert_eq!(last(), "a defect of papr-intc: a bad day");
    }

    #[test]
    fn an_errno_that_is_none_is_no_success() {
        for errno in [0, -5, 5000, i32::MIN] {
            let text = "odd\0".to_owned();
            let request = "CLAIM";
            let refused = || {
                Err(Fail::from(Error::Refused {
                    request,
                    errno,
                    text: text.clone(),
                }))
            };
            assert_eq!(done(refused), -(Errno::EPROTO as i32));
            assert!(last().starts_with("CLAIM: odd "), "{}", last());
        }
    }

    #[test]
    fn while_a_queue_entry_is_stored_only_looks_are_allowed() {
        storing(|| {
            assert_eq!(done(|| panic!("run")), -(Errno::EDEADLK as i32));
            assert_eq!(look(|| Ok(3)), 3);
        });
        assert_eq!(done(|| Ok(())), 0);
    }
}
