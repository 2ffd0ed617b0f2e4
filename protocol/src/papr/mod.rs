//! PAPR's numbers, and the calls that any executor can run.
//!
//! * [`codes`]: opcodes and return codes.
//! * [`dispatch`]: which controller answers a call or an access.
//! * [`xics`]: the six hcalls and four RTAS calls of XICS.
//! * [`xive`]: the H_INT_* calls that any executor runs; [`xive_config`]: those of the daemon.

pub mod codes;
pub mod dispatch;
pub mod xics;
pub mod xive;
pub mod xive_config;
