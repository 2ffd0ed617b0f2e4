//! What has to be known about each standard request in order to pass it on.
//!
//! Follows the vhost-user specification, "Front-end message types": which requests are served here, which are always
//! answered, and what an answer looks like that says no. Pure tables.

use vhost::vhost_user::message::FrontendReq;

/// How a request is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// Answered without the inner daemon, always well.
    Owner,
    /// Passed on; answered with a u64, 0 for success, if the sender asks for it and REPLY_ACK is negotiated.
    Set,
    /// Passed on; always answered, with a body of its own.
    Get,
    /// Not served.
    Unknown,
}

/// The treatment of a standard request code.
pub(super) fn service(request: u32) -> Service {
    use FrontendReq as R;
    match R::try_from(request) {
        Ok(R::SET_OWNER | R::RESET_OWNER) => Service::Owner,
        Ok(
            R::SET_FEATURES
            | R::SET_PROTOCOL_FEATURES
            | R::SET_MEM_TABLE
            | R::ADD_MEM_REG
            | R::REM_MEM_REG
            | R::SET_BACKEND_REQ_FD
            | R::RESET_DEVICE,
        ) => Service::Set,
        Ok(
            R::GET_FEATURES
            | R::GET_PROTOCOL_FEATURES
            | R::GET_MAX_MEM_SLOTS
            | R::GET_CONFIG
            | R::SET_LOG_BASE
            | R::SET_DEVICE_STATE_FD
            | R::CHECK_DEVICE_STATE,
        ) => Service::Get,
        _ => Service::Unknown,
    }
}

/// The request changes what the whole machine stands on: the control thread finishes every request it could already read
/// before it serves this one, and starts none before its reply.
#[must_use]
pub fn is_barrier(request: u32) -> bool {
    use FrontendReq as R;
    matches!(
        R::try_from(request),
        Ok(R::SET_MEM_TABLE | R::ADD_MEM_REG | R::REM_MEM_REG | R::RESET_DEVICE)
            | Ok(R::SET_DEVICE_STATE_FD | R::CHECK_DEVICE_STATE)
    )
}

/// A request about device state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateRequest {
    /// SET_DEVICE_STATE_FD; the state goes out.
    Save,
    /// SET_DEVICE_STATE_FD; it comes in.
    Load,
    /// CHECK_DEVICE_STATE.
    Check,
}

/// Which request about device state this is, if it is one.
#[must_use]
pub fn state_request(request: u32, body: &[u8]) -> Option<StateRequest> {
    use FrontendReq as R;
    let direction = body
        .first_chunk()
        .map_or(0, |word| u32::from_ne_bytes(*word));
    match R::try_from(request) {
        Ok(R::SET_DEVICE_STATE_FD) if direction == 1 => Some(StateRequest::Load),
        Ok(R::SET_DEVICE_STATE_FD) => Some(StateRequest::Save),
        Ok(R::CHECK_DEVICE_STATE) => Some(StateRequest::Check),
        _ => None,
    }
}

/// The body that says no to a request which is always answered. `body` is the request's. None: the sender does not wait.
pub(super) fn refusal(request: u32, body: &[u8]) -> Option<Vec<u8>> {
    use FrontendReq as R;
    let u64_body = |value: u64| Some(value.to_ne_bytes().to_vec());
    match R::try_from(request) {
        Ok(R::GET_FEATURES | R::GET_PROTOCOL_FEATURES | R::GET_MAX_MEM_SLOTS) => u64_body(0),
        // Offset and flags of the request, a size of zero, and no data.
        Ok(R::GET_CONFIG) => {
            let mut reply = body.get(..12).map_or_else(|| vec![0; 12], <[u8]>::to_vec);
            reply[4..8].fill(0);
            Some(reply)
        }
        // The protocol has no refusal here. A log of size zero is one that a front-end which looks cannot take for its
        // own. The old form of the request, an address without a descriptor, is not answered at all.
        Ok(R::SET_LOG_BASE) if body.len() == 16 => Some(vec![0; 16]),
        // Bits 0-7: error; bit 8: no descriptor.
        Ok(R::SET_DEVICE_STATE_FD) => u64_body(0x101),
        Ok(R::CHECK_DEVICE_STATE) => u64_body(1),
        // Truthful: there are none.
        Ok(R::GET_QUEUE_NUM) => u64_body(0),
        _ => None,
    }
}

/// Puts the regions of a SET_MEM_TABLE, and their descriptors, into the order of guest addresses: vm-memory takes no other,
/// and the specification demands none. Leaves alone what is not a table, for the inner daemon to refuse.
pub(super) fn sort_table<F>(body: &mut [u8], fds: &mut Vec<F>) {
    const HEAD: usize = 8;
    const REGION: usize = 32;
    let Some((_, table)) = body.split_at_mut_checked(HEAD) else {
        return;
    };
    if table.len() != fds.len() * REGION {
        return;
    }
    let regions: Vec<[u8; REGION]> = table
        .chunks_exact(REGION)
        .filter_map(|bytes| bytes.try_into().ok())
        .collect();
    let mut rows: Vec<_> = regions.into_iter().zip(fds.drain(..)).collect();
    rows.sort_by_key(|(region, _)| region.first_chunk().copied().map(u64::from_ne_bytes));
    for (slot, (region, fd)) in table.chunks_exact_mut(REGION).zip(rows) {
        slot.copy_from_slice(&region);
        fds.push(fd);
    }
}

/// The name of a request, for people.
pub(super) fn name(request: u32) -> String {
    FrontendReq::try_from(request).map_or_else(|_| format!("{request}"), |code| format!("{code:?}"))
}
