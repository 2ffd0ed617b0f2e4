//! The interrupt controllers of a pseries machine, out of its migration file and into it: the sections of
//! [`super::sections`], found by name and instance. [`super::import`] and [`super::export`] judge them.

use std::collections::BTreeMap;

use super::sections::{self, ByteOrder, IcpEntry, IcsEntry, IrqMap, Ov5, XiveTables};
use super::stream::{Stream, Subsection};
use crate::convert::{ConvertError, refused};

const ICS: &str = "ics";
const ICP: &str = "icp/server";
const XIVE_SOURCE: &str = "xive-source";
const SPAPR_XIVE: &str = "spapr-xive";
const TCTX: &str = "xive-tctx";
const SPAPR: &str = "spapr";
const OV5: &str = "spapr_option_vector_ov5_cas";
const IRQ_MAP: &str = "spapr_irq_map";
const PHB: &str = "spapr_pci";

/// First number that QEMU gives to MSIs; bit 0 of the irq map.
pub const MSI_BASE: u32 = 0x1300;
/// How many numbers it gives to MSIs.
pub const MSIS: u32 = 0xd00;

/// What a migration file says of its interrupt controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Controllers {
    /// XICS sources, from number 0x1000; `None` with ic-mode=xive.
    pub ics: Option<Vec<IcsEntry>>,
    /// XICS presenters by vCPU index.
    pub icps: BTreeMap<u32, IcpEntry>,
    /// XIVE; `None` with ic-mode=xics.
    pub xive: Option<Xive>,
    /// Rings by instance, which is the order in which vCPUs were made.
    pub tctxs: BTreeMap<u32, [u8; 64]>,
    /// What was negotiated at CAS.
    pub ov5: Ov5,
    /// Which MSIs are allocated.
    pub irq_map: IrqMap,
    /// The same as the PCI host bridges have it: first number and count.
    pub msi_blocks: Vec<(u32, u32)>,
}

/// XIVE's sources and tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xive {
    /// One status byte for each LISN.
    pub status: Vec<u8>,
    /// EASes and ENDs.
    pub tables: XiveTables,
    /// How the tables are written.
    pub order: ByteOrder,
}

impl Controllers {
    /// Finds them in a file. Without `order`, the tables' byte order is guessed.
    pub fn read(stream: &Stream, order: Option<ByteOrder>) -> Result<Self, ConvertError> {
        let payload = |name| stream.section(name, 0).map(|s| s.payload.as_slice());
        let ics = payload(ICS).map(sections::ics).transpose()?;
        let xive = match (payload(XIVE_SOURCE), payload(SPAPR_XIVE)) {
            (None, None) => None,
            (Some(source), Some(tables)) => {
                let (tables, order) = XiveTables::from_payload(tables, order)?;
                let status = sections::xive_source(source)?.to_vec();
                Some(Xive {
                    status,
                    tables,
                    order,
                })
            }
            (Some(_), None) => return Err(refused("section spapr-xive", "it is missing")),
            (None, Some(_)) => return Err(refused("section xive-source", "it is missing")),
        };
        let icps = stream.instances(ICP).map(|s| {
            let icp = IcpEntry::from_payload(&s.payload)?;
            Ok((s.instance, icp))
        });
        let tctxs = stream.instances(TCTX).map(|s| {
            let tctx = sections::tctx(&s.payload)?;
            Ok((s.instance, tctx))
        });
        let spapr = stream.section(SPAPR, 0);
        let spapr = spapr.ok_or_else(|| refused("section spapr", "it is missing"))?;
        let part = |name| spapr.subsection(name).map(|p| p.payload.as_slice());
        let mut msi_blocks = Vec::new();
        for phb in stream.instances(PHB) {
            msi_blocks.extend(phb_msis(&phb.payload)?);
        }
        Ok(Self {
            ics,
            icps: icps.collect::<Result<_, ConvertError>>()?,
            xive,
            tctxs: tctxs.collect::<Result<_, ConvertError>>()?,
            ov5: part(OV5).map_or(Ok(Ov5::EMPTY), |p| Ov5::from_payload(OV5, p))?,
            irq_map: part(IRQ_MAP)
                .map_or(Ok(IrqMap::EMPTY), |p| IrqMap::from_payload(IRQ_MAP, p))?,
            msi_blocks,
        })
    }

    /// Puts them into a file that has the same sections.
    pub fn write(&self, stream: &mut Stream) -> Result<(), ConvertError> {
        if let Some(ics) = &self.ics {
            stream.replace(ICS, 0, sections::ics_payload(ics))?;
        }
        for (instance, icp) in &self.icps {
            stream.replace(ICP, *instance, icp.to_payload())?;
        }
        if let Some(xive) = &self.xive {
            let status = sections::xive_source_payload(&xive.status);
            stream.replace(XIVE_SOURCE, 0, status)?;
            stream.replace(SPAPR_XIVE, 0, xive.tables.to_payload(xive.order))?;
        }
        for (instance, regs) in &self.tctxs {
            stream.replace(TCTX, *instance, regs.to_vec())?;
        }
        let present = |name| {
            let spapr = stream.section(SPAPR, 0);
            spapr.is_some_and(|s| s.subsection(name).is_some())
        };
        let ov5 = !self.ov5.is_empty() || present(OV5);
        set(stream, OV5, ov5.then(|| self.ov5.to_payload()))?;
        // QEMU sends the map only if there is something in it.
        let irq_map = !self.irq_map.is_empty();
        set(stream, IRQ_MAP, irq_map.then(|| self.irq_map.to_payload()))
    }
}

fn set(stream: &mut Stream, name: &str, payload: Option<Vec<u8>>) -> Result<(), ConvertError> {
    match payload {
        Some(payload) => {
            let part = Subsection {
                name: name.to_owned(),
                version: 1,
                payload,
            };
            stream.set_subsection(SPAPR, 0, part)?;
        }
        None => stream.remove_subsection(SPAPR, 0, name)?,
    }
    Ok(())
}

/// MSI blocks of a PCI host bridge: BUID, four LSIs, a count, then for each device with MSIs its
/// address, its first number, how many.
fn phb_msis(payload: &[u8]) -> Result<Vec<(u32, u32)>, sections::SectionError> {
    const FIXED: usize = 8 + 4 * 4;
    let counted = payload
        .get(FIXED..)
        .and_then(|p| p.split_first_chunk::<4>());
    let blocks = counted.and_then(|(n, blocks)| {
        let (blocks, odd) = blocks.as_chunks::<12>();
        let whole = odd.is_empty() && blocks.len() == u32::from_be_bytes(*n) as usize;
        whole.then_some(blocks)
    });
    let blocks = blocks.ok_or_else(|| sections::SectionError::Length {
        section: PHB,
        bytes: payload.len(),
        what: "a host bridge and its MSI blocks".to_owned(),
    })?;
    Ok(blocks
        .iter()
        .map(|b| {
            let first = u32::from_be_bytes([b[4], b[5], b[6], b[7]]);
            (first, u32::from_be_bytes([b[8], b[9], b[10], b[11]]))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_blocks_of_a_host_bridge() {
        let mut payload = vec![0; 24];
        payload.extend(2u32.to_be_bytes());
        for word in [0x800u32, 0x1300, 3, 0x1000, 0x1304, 1] {
            payload.extend(word.to_be_bytes());
        }
        assert_eq!(phb_msis(&payload), Ok(vec![(0x1300, 3), (0x1304, 1)]));
        assert_eq!(phb_msis(&[0; 28]), Ok(vec![]));
        payload.pop();
        for bad in [&payload[..], &payload[..27], &[0xff; 28]] {
            assert!(phb_msis(bad).is_err());
        }
    }
}
