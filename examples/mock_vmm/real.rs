//! The machine on a real daemon, through the front-end crate.

use std::sync::Arc;

use papr_intc_frontend::{GuestRam, Intc, Launcher, Options, Vcpu};
use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::papr::codes::RtasCall;
use papr_intc_protocol::wire::source::{ANY, Claim, claim_flag};
use vmm_sys_util::eventfd::EventFd;

use crate::board::{Board, CasAnswer, Cpu, Gone, Numbers, Step};
