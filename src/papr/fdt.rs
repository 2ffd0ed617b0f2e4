//! The device-tree fragment of a mode (xive.md §1.3, xics.md §5.6), written with rust-vmm's vm-fdt.
//!
//! A whole flattened tree: the root holds what belongs into the guest's root node, its one child is
//! the interrupt controller's node. A VMM merges it into its tree at start, reset and CAS.

use papr_intc_protocol::layout::Machine;
use papr_intc_protocol::layout::header::Mode;
use vm_fdt::{Error, FdtWriter};

/// TIMA pages are 64 KiB: HW, HV, OS, user.
const TIMA_PAGE: u64 = 0x10000;
const OS_PAGE: u64 = 2;
const USER_PAGE: u64 = 3;
/// Log2 of the queue size that is advertised.
const QUEUE_SIZE: u32 = 16;

/// The fragment of `mode`.
pub fn fragment(machine: &Machine, mode: Mode) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    match mode {
        Mode::Xics => xics(&mut fdt, machine)?,
        Mode::Xive => xive(&mut fdt, machine)?,
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn xics(fdt: &mut FdtWriter, machine: &Machine) -> Result<(), Error> {
    let node = fdt.begin_node("interrupt-controller")?;
    fdt.property_string("device_type", "PowerPC-External-Interrupt-Presentation")?;
    fdt.property_string("compatible", "IBM,ppc-xicp")?;
    fdt.property_array_u32("ibm,interrupt-server-ranges", &[0, machine.servers])?;
    controller(fdt, machine)?;
    fdt.end_node(node)
}

fn xive(fdt: &mut FdtWriter, machine: &Machine) -> Result<(), Error> {
    // Priorities from hv_prio on are the hypervisor's: (first, count).
    let first = u32::from(machine.hv_prio);
    fdt.property_array_u32("ibm,plat-res-int-priorities", &[first, 0xff - first])?;
    let page = |n| machine.tima_base + n * TIMA_PAGE;
    let node = fdt.begin_node(&format!("interrupt-controller@{:x}", page(USER_PAGE)))?;
    fdt.property_string("device_type", "power-ivpe")?;
    fdt.property_string("compatible", "ibm,power-ivpe")?;
    fdt.property_array_u64(
        "reg",
        &[page(USER_PAGE), TIMA_PAGE, page(OS_PAGE), TIMA_PAGE],
    )?;
    fdt.property_u32("ibm,xive-eq-sizes", QUEUE_SIZE)?;
    fdt.property_array_u32("ibm,xive-lisn-ranges", &[0, machine.servers])?;
    controller(fdt, machine)?;
    fdt.end_node(node)
}

/// What both nodes have.
fn controller(fdt: &mut FdtWriter, machine: &Machine) -> Result<(), Error> {
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_u32("linux,phandle", machine.phandle)?;
    fdt.property_phandle(machine.phandle)
}

#[cfg(test)]
mod tests {
    use papr_intc_protocol::layout::{Compat, IcMode};

    use super::*;

    fn has(blob: &[u8], part: &[u8]) -> bool {
        blob.windows(part.len()).any(|w| w == part)
    }

    #[test]
    fn the_xive_node_is_named_after_the_user_page_and_names_both_pages() {
        let machine = Machine::pseries(IcMode::Dual, Compat::Papr1, 4);
        let blob = fragment(&machine, Mode::Xive).unwrap();
        assert!(has(&blob, b"interrupt-controller@60302031b0000\0"));
        let reg: Vec<u8> = [0x60302031b0000u64, 0x10000, 0x60302031a0000, 0x10000]
            .iter()
            .flat_map(|v| v.to_be_bytes())
            .collect();
        assert!(has(&blob, &reg));
        assert!(
            has(&blob, &[0, 0, 0, 7, 0, 0, 0, 0xf8]),
            "priorities from 7 on are reserved"
        );
    }

    #[test]
    fn the_xics_node_gives_the_server_range() {
        let machine = Machine::pseries(IcMode::Dual, Compat::Papr1, 4);
        let blob = fragment(&machine, Mode::Xics).unwrap();
        assert!(has(&blob, b"IBM,ppc-xicp\0") && !has(&blob, b"power-ivpe"));
        assert!(has(&blob, &[0, 0, 0, 0, 0, 0, 0, 4]));
    }
}
