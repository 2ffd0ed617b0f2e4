//! What the guest and firmware see of the choice between the controllers: CAS and the device tree.
//!
//! hcalls and RTAS calls are in `protocol/src/papr`, where every executor finds them.

pub mod cas;
pub mod fdt;
