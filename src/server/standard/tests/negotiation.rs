//! Handshake, configuration block, reset, back channel, device state, and one VMM after another.

use super::*;

#[test]
fn a_stock_front_end_shakes_hands() {
    let (vmm, daemon) = stock();
    assert_eq!(
        daemon.events(),
        [StandardEvent::FeaturesAcked(FEATURES & !LOG_ALL)]
    );
    drop(vmm);
    let standard = daemon.standard();
    assert_eq!(standard.acked_features(), FEATURES & !LOG_ALL);
    assert_eq!(standard.acked_protocol_features(), PROTOCOL_FEATURES.bits());
}

#[test]
fn nothing_is_acknowledged_before_the_vmm_says_so() {
    let standard = Standard::new(identity()).unwrap();
    assert_eq!(
        (
            standard.acked_features(),
            standard.acked_protocol_features()
        ),
        (0, 0)
    );
    assert!(standard.back_channel().is_none());
}

#[test]
fn set_owner_is_answered_every_time() {
    let (vmm, _daemon) = stock();
    vmm.set_owner().unwrap();
    vmm.reset_owner().unwrap();
    vmm.set_owner().unwrap();
}

#[test]
fn without_reply_ack_no_acknowledgement_is_sent_though_one_is_asked_for() {
    let (vmm, _daemon) = raw();
    vmm.send(FrontendReq::SET_OWNER, FLAG_NEED_REPLY, &[], &[]);
    vmm.send(
        FrontendReq::SET_FEATURES,
        FLAG_NEED_REPLY,
        &FEATURES.to_ne_bytes(),
        &[],
    );
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        FLAG_NEED_REPLY,
        &0u64.to_ne_bytes(),
        &[],
    );
    vmm.still_works();
}

#[test]
fn with_reply_ack_an_acknowledgement_is_sent_only_if_asked_for() {
    let (vmm, _daemon) = raw();
    let zero = 0u64.to_ne_bytes();
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        0,
        &REPLY_ACK.to_ne_bytes(),
        &[],
    );
    vmm.send(FrontendReq::SET_FEATURES, 0, &FEATURES.to_ne_bytes(), &[]);
    vmm.still_works();
    vmm.send(
        FrontendReq::SET_FEATURES,
        FLAG_NEED_REPLY,
        &FEATURES.to_ne_bytes(),
        &[],
    );
    assert_eq!(vmm.reply(FrontendReq::SET_FEATURES), zero);
    vmm.send(FrontendReq::SET_OWNER, FLAG_NEED_REPLY, &[], &[]);
    assert_eq!(vmm.reply(FrontendReq::SET_OWNER), zero);
    vmm.still_works();
}

#[test]
fn the_message_that_negotiates_reply_ack_may_ask_for_one() {
    let (vmm, _daemon) = raw();
    let body = REPLY_ACK.to_ne_bytes();
    vmm.send(
        FrontendReq::SET_PROTOCOL_FEATURES,
        FLAG_NEED_REPLY,
        &body,
        &[],
    );
    assert_eq!(
        vmm.reply(FrontendReq::SET_PROTOCOL_FEATURES),
        0u64.to_ne_bytes()
    );
}

#[test]
fn a_set_request_has_taken_effect_when_the_next_one_is_answered() {
    let (vmm, daemon) = raw();
    let ram = memfd(MIB);
    // REPLY_ACK is not negotiated, so nothing but the order of service can be relied upon.
    for gpa in (0..50).map(|i| i * MIB) {
        vmm.send(
            FrontendReq::SET_MEM_TABLE,
            0,
            &table_body(&[(gpa, MIB, 0)]),
            &[&ram],
        );
        vmm.still_works();
        assert!(daemon.ram.is_backed(gpa, MIB));
    }
}

#[test]
fn the_identity_block_is_read_whole_and_in_part() {
    let (mut vmm, _daemon) = stock();
    let flags = VhostUserConfigFlags::empty();
    let (_, whole) = vmm.get_config(0, 64, flags, &[0; 64]).unwrap();
    assert_eq!(whole, identity());
    let (_, part) = vmm.get_config(60, 4, flags, &[0; 4]).unwrap();
    assert_eq!(part, identity()[60..]);
}

#[test]
fn the_identity_block_may_change() {
    let (vmm, daemon) = stock();
    drop(vmm);
    let standard = daemon.standard();
    standard.set_identity([0xee; IDENTITY_LEN]);
    let (socket, _daemon) = serve(standard);
    let mut vmm = shake_hands(socket, FEATURES);
    let (_, whole) = vmm
        .get_config(0, 64, VhostUserConfigFlags::empty(), &[0; 64])
        .unwrap();
    assert_eq!(whole, [0xee; 64]);
}

#[test]
fn beyond_the_identity_block_everything_is_zero() {
    let (mut vmm, _daemon) = stock();
    let flags = VhostUserConfigFlags::empty();
    let (_, long) = vmm.get_config(0, 256, flags, &[0; 256]).unwrap();
    assert_eq!((&long[..64], &long[64..]), (&identity()[..], &[0; 192][..]));
    let (_, across) = vmm.get_config(62, 4, flags, &[0; 4]).unwrap();
    assert_eq!(across, [identity()[62], identity()[63], 0, 0]);
    let (_, beyond) = vmm.get_config(0xffc, 4, flags, &[0; 4]).unwrap();
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn reset_device_is_an_event_and_keeps_features_and_memory() {
    let (vmm, daemon) = stock();
    let mut vmm = vmm;
    let ram = memfd(MIB);
    vmm.set_features(FEATURES).unwrap();
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    daemon.events();

    vmm.reset_device().unwrap();

    assert_eq!(daemon.events(), [StandardEvent::DeviceReset]);
    assert!(daemon.ram.is_backed(0, MIB));
    vmm.get_max_mem_slots().unwrap();
    drop(vmm);
    assert_eq!(daemon.standard().acked_features(), FEATURES);
}

#[test]
fn an_event_that_cannot_be_obeyed_turns_the_acknowledgement() {
    let mut standard = Standard::new(identity()).unwrap();
    let protocol = RawMessage {
        request: FrontendReq::SET_PROTOCOL_FEATURES.into(),
        flags: 1,
        body: PROTOCOL_FEATURES.bits().to_ne_bytes().to_vec(),
        fds: Vec::new(),
    };
    let reset = RawMessage {
        request: FrontendReq::RESET_DEVICE.into(),
        flags: 1 | FLAG_NEED_REPLY,
        body: Vec::new(),
        fds: Vec::new(),
    };
    assert!(standard.serve(protocol).unwrap().reply.is_none());

    let mut served = standard.serve(reset).unwrap();

    assert_eq!(served.reply.as_ref().unwrap().body, 0u64.to_ne_bytes());
    served.refuse();
    assert_eq!(served.reply.unwrap().body, 1u64.to_ne_bytes());
}

#[test]
fn notes_reach_the_vmm_on_the_channel_it_gave() {
    let (mut vmm, daemon) = stock();
    daemon.events();
    let (theirs, ours) = UnixStream::pair().unwrap();
    vmm.set_backend_request_fd(&ours).unwrap();
    drop(ours);
    assert_eq!(daemon.events(), [StandardEvent::BackChannel]);
    drop(vmm);
    let mut standard = daemon.standard();

    send_message(
        standard.back_channel().unwrap(),
        0x1080,
        0,
        b"note",
        &[],
        LONG,
    )
    .unwrap();
    assert_eq!(
        recv_message(&theirs, Some(LONG)).unwrap().unwrap().body,
        b"note"
    );

    // Nobody else holds the channel, so it ends with the connection.
    standard.connection_ended().unwrap();
    assert!(recv_message(&theirs, Some(LONG)).unwrap().is_none());
}

#[test]
fn device_state_is_refused_in_so_many_words() {
    let (vmm, _daemon) = stock();
    let (_read, write) = std::io::pipe().unwrap();
    vmm.set_device_state_fd(Direction::SAVE, Phase::STOPPED, OwnedFd::from(write))
        .unwrap_err();
    vmm.check_device_state().unwrap_err();
    let mut vmm = vmm;
    vmm.get_max_mem_slots().unwrap();
}

#[test]
fn the_next_vmm_finds_nothing_of_the_one_before() {
    let ram = memfd(MIB);
    let log = memfd(4096);
    let mut standard = Standard::new(identity()).unwrap();
    for _ in 0..3 {
        let (socket, daemon) = serve(standard);
        let vmm = shake_hands(socket, FEATURES);
        vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
        let region = VhostUserDirtyLogRegion {
            mmap_size: 4096,
            mmap_offset: 0,
            mmap_handle: log.as_raw_fd(),
        };
        vmm.set_log_base(0, Some(region)).unwrap();
        let handle = daemon.ram.clone();
        assert!(handle.write_queue_entry(0, 1));
        drop(vmm);
        standard = daemon.standard();

        standard.connection_ended().unwrap();

        assert!(!handle.is_backed(0, 4));
        assert!(!handle.write_queue_entry(0, 2));
        assert_eq!(
            (
                standard.acked_features(),
                standard.acked_protocol_features()
            ),
            (0, 0)
        );
        assert_eq!((references(&ram), references(&log)), (1, 1));
    }
}
