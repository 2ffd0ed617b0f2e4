//! The dirty log, where the crate alone would lose pages or mark too many.

use super::*;

/// Pages marked in the log, ascending.
pub(super) fn dirty(log: &File) -> Vec<u64> {
    let mut bytes = vec![0; log.metadata().unwrap().len() as usize];
    log.read_exact_at(&mut bytes, 0).unwrap();
    let page = |byte: usize, bit: u64| byte as u64 * 8 + bit;
    let bits = bytes.iter().enumerate();
    bits.flat_map(|(i, b)| {
        (0..8)
            .filter(move |bit| b >> bit & 1 == 1)
            .map(move |bit| page(i, bit))
    })
    .collect()
}

fn set_log(vmm: &Frontend, log: &File) {
    let region = VhostUserDirtyLogRegion {
        mmap_size: log.metadata().unwrap().len(),
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    vmm.set_log_base(0, Some(region)).unwrap();
}

/// Writes the first entry of a page.
fn touch(daemon: &Daemon, page: u64) {
    assert!(daemon.ram.write_queue_entry(page * 4096, 0xdead_beef));
}

#[test]
fn pages_are_marked_while_log_all_is_acknowledged_and_only_then() {
    let (vmm, daemon) = stock();
    let (ram, log) = (memfd(MIB), memfd(4096));
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    set_log(&vmm, &log);
    touch(&daemon, 1);
    assert!(dirty(&log).is_empty());

    vmm.set_features(FEATURES).unwrap();
    touch(&daemon, 2);
    touch(&daemon, 255);
    assert_eq!(dirty(&log), [2, 255]);

    vmm.set_features(FEATURES & !LOG_ALL).unwrap();
    touch(&daemon, 3);
    assert_eq!(dirty(&log), [2, 255]);

    vmm.set_features(FEATURES).unwrap();
    touch(&daemon, 4);
    assert_eq!(dirty(&log), [2, 4, 255]);
}

#[test]
fn log_all_may_come_before_the_log() {
    let (vmm, daemon) = stock();
    let (ram, log) = (memfd(MIB), memfd(4096));
    vmm.set_features(FEATURES).unwrap();
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    touch(&daemon, 1);
    set_log(&vmm, &log);
    touch(&daemon, 2);
    assert_eq!(dirty(&log), [2]);
}

#[test]
fn a_region_added_while_logging_is_logged() {
    let (mut vmm, daemon) = stock();
    let (ram, log) = (memfd(2 * MIB), memfd(4096));
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    set_log(&vmm, &log);
    vmm.set_features(FEATURES).unwrap();

    vmm.add_mem_region(&region(&ram, 4 * MIB, MIB, MIB))
        .unwrap();
    touch(&daemon, 1024 + 7);
    touch(&daemon, 7);

    assert_eq!(dirty(&log), [7, 1031]);
}

#[test]
fn a_new_table_while_logging_is_logged() {
    let (vmm, daemon) = stock();
    let (ram, log) = (memfd(2 * MIB), memfd(4096));
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    set_log(&vmm, &log);
    vmm.set_features(FEATURES).unwrap();

    vmm.set_mem_table(&[region(&ram, 0, MIB, 0), region(&ram, 2 * MIB, MIB, MIB)])
        .unwrap();
    touch(&daemon, 5);
    touch(&daemon, 512 + 5);

    assert_eq!(dirty(&log), [5, 517]);
}

#[test]
fn memory_that_all_went_and_came_back_is_logged() {
    let (mut vmm, daemon) = stock();
    let (ram, log) = (memfd(MIB), memfd(4096));
    vmm.add_mem_region(&region(&ram, 0, MIB, 0)).unwrap();
    set_log(&vmm, &log);
    vmm.set_features(FEATURES).unwrap();
    vmm.remove_mem_region(&region(&ram, 0, MIB, 0)).unwrap();
    vmm.add_mem_region(&region(&ram, MIB, MIB, 0)).unwrap();
    touch(&daemon, 256);
    assert_eq!(dirty(&log), [256]);
}

#[test]
fn a_second_log_takes_the_place_of_the_first() {
    let (mut vmm, daemon) = stock();
    let (ram, old, new) = (memfd(2 * MIB), memfd(4096), memfd(8192));
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    vmm.set_features(FEATURES).unwrap();
    set_log(&vmm, &old);
    touch(&daemon, 1);
    set_log(&vmm, &new);
    touch(&daemon, 2);
    vmm.add_mem_region(&region(&ram, MIB, MIB, MIB)).unwrap();
    touch(&daemon, 256);
    assert_eq!((dirty(&old), dirty(&new)), (vec![1], vec![2, 256]));
    assert_eq!(references(&old), 1);
}

#[test]
fn a_reset_does_not_stop_the_log() {
    let (mut vmm, daemon) = stock();
    let (ram, log) = (memfd(MIB), memfd(4096));
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    set_log(&vmm, &log);
    vmm.set_features(FEATURES).unwrap();
    vmm.reset_device().unwrap();
    touch(&daemon, 9);
    assert_eq!(dirty(&log), [9]);
}

#[test]
fn a_refused_request_does_not_stop_the_log() {
    let (mut vmm, daemon) = stock();
    let (ram, log) = (memfd(MIB), memfd(4096));
    vmm.set_mem_table(&[region(&ram, 0, MIB, 0)]).unwrap();
    set_log(&vmm, &log);
    vmm.set_features(FEATURES).unwrap();
    vmm.add_mem_region(&region(&ram, 0, MIB, 0)).unwrap_err();
    touch(&daemon, 9);
    assert_eq!(dirty(&log), [9]);
}
