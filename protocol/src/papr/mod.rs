//! PAPR's numbers, and the calls that any executor can run.

pub mod codes;
pub mod xics;
