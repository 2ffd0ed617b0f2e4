//! Bytes that C is handed and frees.
#![allow(unsafe_code)] // allocated by malloc, so that C's free() will do

use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc;

use crate::boundary::Fail;

/// Bytes that belong to the VMM: to be freed by papr_intc_buffer_free or by free(data).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Buffer {
    /// The bytes, and a zero after the last, so that a text is a string. NULL after papr_intc_buffer_free.
    pub data: *mut u8,
    /// How many, without that zero.
    pub size: usize,
}

impl Buffer {
    /// Nothing.
    pub const NONE: Self = Self {
        data: std::ptr::null_mut(),
        size: 0,
    };

    /// A copy.
    pub fn of(bytes: &[u8]) -> Result<Self, Fail> {
        let size = bytes.len();
        // SAFETY: a size that is not 0.
        let data = unsafe { libc::malloc(size + 1) }.cast::<u8>();
        if data.is_null() {
            return Err(Fail::new(
                Errno::ENOMEM,
                format!("no memory for {size} bytes"),
            ));
        }
        // SAFETY: `data` has `size + 1` bytes, which nobody else knows.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), data, size);
            data.add(size).write(0);
        }
        Ok(Self { data, size })
    }

    /// Copies what `bytes` returns into `out`.
    pub fn fill(
        out: &mut MaybeUninit<Self>,
        bytes: impl FnOnce() -> Result<Vec<u8>, Fail>,
    ) -> Result<(), Fail> {
        out.write(Self::of(&bytes()?)?);
        Ok(())
    }
}

/// Frees the bytes and sets data to NULL and size to 0. Does nothing if buffer or its data is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn papr_intc_buffer_free(buffer: Option<&mut Buffer>) {
    let Some(buffer) = buffer else {
        return;
    };
    // SAFETY: allocated by malloc in `of`, or NULL; freed once, as the caller promises.
    unsafe { libc::free(buffer.data.cast()) };
    *buffer = Buffer::NONE;
}
