//! Refused requests: an answer where one is due, and a connection that goes on as if nothing had been asked.

use super::*;
use crate::server::socket::{FLAG_REPLY, MAX_STANDARD_BODY};

/// Everything still there: the negotiation (slots, configuration), the memory, and the way to more of it.
fn unharmed(vmm: &mut Frontend, daemon: &Daemon, ram: &File) {
    assert_eq!(vmm.get_max_mem_slots().unwrap(), 509);
    vmm.get_config(0, 64, VhostUserConfigFlags::empty(), &[0; 64])
        .unwrap();
    assert!(daemon.ram.is_backed(0, MIB) && daemon.ram.regions() == 1);
    vmm.add_mem_region(&region(ram, 64 * MIB, MIB, 0)).unwrap();
    assert!(daemon.ram.write_queue_entry(64 * MIB, 7));
    vmm.remove_mem_region(&region(ram, 64 * MIB, MIB, 0))
        .unwrap();
    daemon.events();
}

#[test]
fn a_refused_memory_message_leaves_everything_as_it_was() {
    let (mut vmm, daemon) = stock();
    let (ram, short) = (memfd(MIB), memfd(4096));
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    daemon.events();

    let refused = [
        ("overlap", region(&ram, MIB / 2, MIB, 0)),
        ("beyond the end of the file", region(&short, MIB, 8192, 0)),
        (
            "beyond the end by its offset",
            region(&short, MIB, 4096, 4096),
        ),
        ("address not on a page", region(&ram, MIB + 4, 4096, 0)),
        ("size not of pages", region(&ram, MIB, 4097, 0)),
        ("offset not on a page", region(&ram, MIB, 4096, 1)),
        (
            "end of the address space",
            region(&ram, u64::MAX - 4095, 8192, 0),
        ),
    ];
    for (what, bad) in refused {
        vmm.add_mem_region(&bad).expect_err(what);
        assert_eq!(daemon.events(), [], "{what}");
        unharmed(&mut vmm, &daemon, &ram);
    }
    vmm.remove_mem_region(&region(&ram, 0, 4096, 0))
        .unwrap_err();
    unharmed(&mut vmm, &daemon, &ram);
    vmm.set_mem_table(&[region(&ram, 0, 4096, 0), region(&short, 4096, 8192, 0)])
        .unwrap_err();
    unharmed(&mut vmm, &daemon, &ram);
    assert_eq!(references(&short), 1);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let (mut vmm, daemon) = stock();
    let ram = memfd(MIB);
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    vmm.set_features(FEATURES | 1 << 5).unwrap_err();
    unharmed(&mut vmm, &daemon, &ram);
    drop(vmm);
    assert_eq!(daemon.standard().acked_features(), FEATURES & !LOG_ALL);
}

#[test]
fn protocol_features_that_were_not_offered_are_refused() {
    let (vmm, daemon) = raw();
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        0,
        &REPLY_ACK.to_ne_bytes(),
        &[],
    );
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        FLAG_NEED_REPLY,
        &u64::MAX.to_ne_bytes(),
        &[],
    );
    assert_eq!(
        vmm.reply(FrontendReq::SET_PROTOCOL_FEATURES),
        1u64.to_ne_bytes()
    );
    vmm.still_works();
    drop(vmm);
    assert_eq!(daemon.standard().acked_protocol_features(), REPLY_ACK);
}

#[test]
fn what_needs_a_feature_is_refused_without_it() {
    let (vmm, _daemon) = raw();
    assert_eq!(
        vmm.ask(FrontendReq::GET_MAX_MEM_SLOTS, &[]),
        0u64.to_ne_bytes()
    );
    let config = [0u32, 64, 0].map(u32::to_ne_bytes).concat();
    let reply = vmm.ask(FrontendReq::GET_CONFIG, &[&config[..], &[0; 64]].concat());
    assert_eq!(reply, [0; 12]);
    vmm.send(FrontendReq::RESET_DEVICE, 0, &[], &[]);
    vmm.still_works();
}

#[test]
fn unknown_requests_are_answered_if_asked_for_and_the_connection_is_kept() {
    let (vmm, _daemon) = raw();
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        0,
        &REPLY_ACK.to_ne_bytes(),
        &[],
    );
    let fd = memfd(4096);
    for code in (7u32..=14).chain([18, 19, 22, 25, 27, 33, 35, 39, 45, 1000, 0xfff]) {
        vmm.send(code, 0, b"whatever", &[&fd]);
        vmm.still_works();
        vmm.send(code, FLAG_NEED_REPLY, &[], &[]);
        assert_ne!(vmm.reply(code), 0u64.to_ne_bytes());
    }
    assert_eq!(vmm.ask(FrontendReq::GET_QUEUE_NUM, &[]), 0u64.to_ne_bytes());
    assert_eq!(references(&fd), 1);
}

#[test]
fn more_descriptors_than_the_crate_takes_are_refused_and_closed() {
    let (vmm, daemon) = raw();
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        0,
        &REPLY_ACK.to_ne_bytes(),
        &[],
    );
    let ram = memfd(MIB);
    for count in [33, 253] {
        let body = table_body(&[(0, MIB, 0)]);
        vmm.send(
            FrontendReq::SET_MEM_TABLE,
            FLAG_NEED_REPLY,
            &body,
            &vec![&ram; count],
        );
        assert_eq!(vmm.reply(FrontendReq::SET_MEM_TABLE), 1u64.to_ne_bytes());
    }
    // Without a body to be taken for the next header, the crate would wait for ever.
    vmm.send(FrontendReq::GET_FEATURES, 0, &[], &vec![&ram; 33]);
    assert_eq!(vmm.reply(FrontendReq::GET_FEATURES), 0u64.to_ne_bytes());
    vmm.still_works();
    assert_eq!((references(&ram), daemon.ram.regions()), (1, 0));
}

#[test]
fn no_message_of_the_wrong_shape_breaks_the_connection() {
    let (vmm, daemon) = raw();
    let all = PROTOCOL_FEATURES.bits().to_ne_bytes();
    let ram = memfd(MIB);
    vmm.send(FrontendReq::SET_PROTOCOL_FEATURES, 0, &all, &[]);
    vmm.send(FrontendReq::SET_FEATURES, 0, &FEATURES.to_ne_bytes(), &[]);
    for code in 1u32..=45 {
        for len in [1, 7, 9, 11, 13, 15, 17, 39, 41, 100, MAX_STANDARD_BODY] {
            for fds in [0, 1, 2, 32] {
                vmm.send(code, 0, &vec![0xff; len], &vec![&ram; fds]);
            }
        }
        // Some of them are answered. In step, the next acknowledgement is for the next request that asks for one.
        vmm.send(FrontendReq::SET_OWNER, FLAG_NEED_REPLY, &[], &[]);
        while recv_message(&vmm.0, Some(LONG)).unwrap().unwrap().request != 3 {}
    }
    vmm.still_works();
    assert_eq!(
        vmm.ask(FrontendReq::GET_MAX_MEM_SLOTS, &[]),
        509u64.to_ne_bytes()
    );
    assert_eq!((references(&ram), daemon.ram.regions()), (1, 0));
}

#[test]
fn logs_that_cannot_serve_are_refused() {
    let (mut vmm, daemon) = stock();
    let (ram, short, log) = (memfd(MIB), memfd(4096), memfd(8192));
    let set = |vmm: &Frontend, file: &File, size, offset| {
        let region = VhostUserDirtyLogRegion {
            mmap_size: size,
            mmap_offset: offset,
            mmap_handle: file.as_raw_fd(),
        };
        vmm.set_log_base(0, Some(region))
    };
    set(&vmm, &log, 8192, 0).expect_err("no memory yet");
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    set(&vmm, &short, 8192, 0).expect_err("longer than its file");
    unharmed(&mut vmm, &daemon, &ram);
    set(&vmm, &log, 4096, u64::MAX - 8).expect_err("wraps");
    unharmed(&mut vmm, &daemon, &ram);
    set(&vmm, &log, 31, 0).expect_err("too small for the memory");
    unharmed(&mut vmm, &daemon, &ram);
    assert_eq!((references(&short), references(&log)), (1, 1));
    set(&vmm, &log, 4096, 4096).unwrap();
    // The log reaches to 128 MiB. Memory beyond cannot be logged, so it is not taken.
    vmm.add_mem_region(&region(&ram, 128 * MIB, MIB, 0))
        .unwrap_err();
    unharmed(&mut vmm, &daemon, &ram);
}

#[test]
fn the_old_form_of_set_log_base_is_not_answered() {
    let (vmm, _daemon) = raw();
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        0,
        &REPLY_ACK.to_ne_bytes(),
        &[],
    );
    vmm.send(FrontendReq::SET_LOG_BASE, 0, &[0; 8], &[]);
    vmm.still_works();
}

#[test]
fn a_channel_that_is_no_stream_socket_is_refused() {
    let (mut vmm, daemon) = stock();
    let file = memfd(4096);
    vmm.set_backend_request_fd(&file).unwrap_err();
    assert_eq!(references(&file), 1);
    vmm.get_max_mem_slots().unwrap();
    drop(vmm);
    assert!(daemon.standard().back_channel().is_none());
}

#[test]
fn a_thousand_refusals_leave_no_descriptor_and_no_mapping() {
    let (mut vmm, daemon) = stock();
    let ram = memfd(MIB);
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    let before = references(&ram);
    for _ in 0..1000 {
        vmm.add_mem_region(&region(&ram, 0, MIB, 0)).unwrap_err();
    }
    assert_eq!(references(&ram), before);
    unharmed(&mut vmm, &daemon, &ram);
}

#[test]
fn a_reply_to_nothing_is_not_answered() {
    let (vmm, daemon) = raw();
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        0,
        &REPLY_ACK.to_ne_bytes(),
        &[],
    );
    vmm.send(FrontendReq::GET_FEATURES, FLAG_REPLY, &[], &[]);
    vmm.send(
        FrontendReq::SET_FEATURES,
        FLAG_REPLY | FLAG_NEED_REPLY,
        &[0; 8],
        &[],
    );
    vmm.still_works();
    assert_eq!(daemon.events(), []);
}
