//! The memory table, and writes through it.

use super::*;

#[test]
fn entries_are_stored_big_endian_where_the_table_says() {
    let (vmm, daemon) = stock();
    let (low, high) = (memfd(2 * MIB), memfd(MIB));
    vmm.set_mem_table(&[region(&low, 0, MIB, MIB), region(&high, 16 * MIB, MIB, 0)])
        .unwrap();

    assert!(daemon.ram.write_queue_entry(0x1000, 0x8000_1234));
    assert!(daemon.ram.write_queue_entry(17 * MIB - 4, 0x0102_0304));

    assert_eq!(word_at(&low, MIB + 0x1000), [0x80, 0x00, 0x12, 0x34]);
    assert_eq!(word_at(&high, MIB - 4), [1, 2, 3, 4]);
    assert_eq!(daemon.ram.read_queue_entry(0x1000), Some(0x8000_1234));
    assert!(daemon.events().contains(&StandardEvent::MemoryChanged));
}

#[test]
fn what_is_not_memory_is_not_written() {
    let (vmm, daemon) = stock();
    let ram = memfd(MIB);
    assert!(!daemon.ram.write_queue_entry(0, 1));
    vmm.set_mem_table(&[region(&ram, MIB, MIB, 0)]).unwrap();
    for gpa in [
        0,
        MIB - 4,
        MIB - 1,
        MIB + 1,
        MIB + 2,
        2 * MIB - 2,
        2 * MIB,
        u64::MAX - 3,
        u64::MAX,
    ] {
        assert!(!daemon.ram.write_queue_entry(gpa, !0), "{gpa:#x}");
        assert_eq!(daemon.ram.read_queue_entry(gpa), None, "{gpa:#x}");
    }
    let mut bytes = vec![0; MIB as usize];
    ram.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn backed_means_every_byte_of_the_range() {
    let (vmm, daemon) = stock();
    let ram = memfd(4 * MIB);
    let table = [
        region(&ram, MIB, MIB, 0),
        region(&ram, 2 * MIB, MIB, MIB),
        region(&ram, 4 * MIB, MIB, 2 * MIB),
    ];
    vmm.set_mem_table(&table).unwrap();
    let backed = |gpa, len| daemon.ram.is_backed(gpa, len);
    assert!(backed(MIB, 1) && backed(MIB, MIB) && backed(5 * MIB - 1, 1));
    assert!(backed(MIB, 2 * MIB), "two adjacent regions");
    assert!(!backed(MIB - 1, 2) && !backed(MIB, 2 * MIB + 1) && !backed(3 * MIB, 1));
    assert!(!backed(2 * MIB, 3 * MIB), "a hole in the middle");
    assert!(!backed(MIB, 0) && !backed(u64::MAX, 2) && !backed(MIB, u64::MAX));
}

#[test]
fn regions_come_and_go_one_by_one() {
    let (mut vmm, daemon) = stock();
    let (one, two) = (memfd(MIB), memfd(MIB));
    assert_eq!(vmm.get_max_mem_slots().unwrap(), 509);
    vmm.add_mem_region(&region(&two, 8 * MIB, MIB, 0)).unwrap();
    vmm.add_mem_region(&region(&one, 0, MIB, 0)).unwrap();
    assert!(daemon.ram.is_backed(0, MIB) && daemon.ram.is_backed(8 * MIB, MIB));

    vmm.remove_mem_region(&region(&two, 8 * MIB, MIB, 0))
        .unwrap();

    assert!(daemon.ram.is_backed(0, MIB) && !daemon.ram.is_backed(8 * MIB, 1));
    assert_eq!((references(&two), daemon.ram.regions()), (1, 1));
    vmm.remove_mem_region(&region(&one, 0, MIB, 0)).unwrap();
    assert_eq!((references(&one), daemon.ram.regions()), (1, 0));
}

#[test]
fn a_new_table_takes_the_place_of_the_old_one() {
    let (vmm, daemon) = stock();
    let (one, two) = (memfd(MIB), memfd(MIB));
    vmm.set_mem_table(&[region(&one, 0, MIB, 0)]).unwrap();
    vmm.set_mem_table(&[region(&two, 4 * MIB, MIB, 0)]).unwrap();
    assert!(!daemon.ram.is_backed(0, 1) && daemon.ram.is_backed(4 * MIB, MIB));
    assert_eq!(references(&one), 1);
}

#[test]
fn memory_is_not_populated_by_being_shared() {
    let (vmm, daemon) = stock();
    let ram = memfd(64 * MIB);
    vmm.set_mem_table(&[region(&ram, 0, 64 * MIB, 0)]).unwrap();
    assert_eq!(ram.metadata().unwrap().blocks(), 0);
    assert!(daemon.ram.write_queue_entry(0, 1));
    assert_eq!(ram.metadata().unwrap().blocks() * 512, 4096);
}

#[test]
fn the_order_of_a_table_does_not_matter() {
    let (vmm, daemon) = stock();
    let (one, two, three) = (memfd(MIB), memfd(MIB), memfd(MIB));
    let table = [
        region(&three, 8 * MIB, MIB, 0),
        region(&one, 0, MIB, 0),
        region(&two, 4 * MIB, MIB, 0),
    ];
    vmm.set_mem_table(&table).unwrap();
    for (file, gpa) in [(&one, 0), (&two, 4 * MIB), (&three, 8 * MIB)] {
        assert!(daemon.ram.write_queue_entry(gpa, (gpa / MIB) as u32 + 1));
        assert_eq!(u32::from_be_bytes(word_at(file, 0)), (gpa / MIB) as u32 + 1);
    }
}
