//! QEMU 7.2 pseries: its migration file, and the sections that belong to the interrupt controllers.
//!
//! * [`stream`]: the file, cut into devices by its [`description`].

pub mod description;
pub mod stream;
