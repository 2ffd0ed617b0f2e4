//! Which vCPU a section belongs to. A stream numbers presenters by vCPU index and rings by the order in which
//! vCPUs were made; the server number stands only in a ring's OS CAM line.

use super::controllers::Controllers;
use crate::convert::{ConvertError, refused};

/// OS CAM of server 0: the NVT index, with block 0.
pub const NVT_BASE: u32 = 0x400;
/// W2: the context is there.
pub const W2_VALID: u32 = 1 << 31;
/// Where W2 of the OS ring is in a ring's bytes.
pub const W2: std::ops::Range<usize> = 0x18..0x1c;

/// A vCPU of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpu {
    /// Its server number.
    pub server: u32,
    /// Its instance of `icp/server`, if the machine has XICS.
    pub icp: Option<u32>,
    /// Its instance of `xive-tctx`, if the machine has XIVE.
    pub tctx: Option<u32>,
}

/// The vCPUs, server numbers ascending.
///
/// Server numbers rise with vCPU indices, so presenters and rings pair up in order. `vsmt`, the servers of one
/// vCPU index to the next, is needed only without rings; 1 if not given. With rings it is checked.
pub fn of(controllers: &Controllers, vsmt: Option<u32>) -> Result<Vec<Vcpu>, ConvertError> {
    let by_index = |index: u32| {
        let server = index.checked_mul(vsmt.unwrap_or(1));
        server.ok_or_else(|| refused(format!("icp/server {index}"), "no server has such a number"))
    };
    if controllers.xive.is_none() {
        let vcpu = |index: &u32| {
            Ok(Vcpu {
                server: by_index(*index)?,
                icp: Some(*index),
                tctx: None,
            })
        };
        return controllers.icps.keys().map(vcpu).collect();
    }
    let rings = controllers.tctxs.iter();
    let rings = rings.map(|(instance, regs)| Ok((server(*instance, regs)?, *instance)));
    let mut rings: Vec<(u32, u32)> = rings.collect::<Result<_, ConvertError>>()?;
    rings.sort_unstable();
    if let Some(twice) = rings.windows(2).find(|w| w[0].0 == w[1].0) {
        let item = format!("xive-tctx {}", twice[1].1);
        let what = format!(
            "server {} has a ring already, instance {}",
            twice[1].0, twice[0].1
        );
        return Err(refused(item, what));
    }
    if controllers.ics.is_some() && controllers.icps.len() != rings.len() {
        let what = format!(
            "{} of them, and {} rings",
            controllers.icps.len(),
            rings.len()
        );
        return Err(refused("icp/server", what));
    }
    let mut icps = controllers.icps.keys();
    let vcpu = |(server, tctx): (u32, u32)| {
        let icp = icps.next().copied();
        match (icp, vsmt) {
            (Some(index), Some(vsmt)) if by_index(index)? != server => Err(refused(
                format!("xive-tctx {tctx}"),
                format!("server {server}, but vCPU {index} at a vsmt of {vsmt} is another"),
            )),
            _ => Ok(Vcpu {
                server,
                icp,
                tctx: Some(tctx),
            }),
        }
    };
    rings.into_iter().map(vcpu).collect()
}

fn server(instance: u32, regs: &[u8; 64]) -> Result<u32, ConvertError> {
    let w2 = u32::from_be_bytes([regs[0x18], regs[0x19], regs[0x1a], regs[0x1b]]);
    let cam = w2 & 0xff_ffff;
    let server = cam.checked_sub(NVT_BASE).filter(|_| w2 & W2_VALID != 0);
    server.ok_or_else(|| {
        let what = format!("W2 of its OS ring is {w2:#010x}, which names no vCPU");
        refused(format!("xive-tctx {instance}"), what)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::controllers::Xive;
    use super::super::sections::{ByteOrder, IcpEntry, IrqMap, Ov5, XiveTables};
    use super::*;

    fn regs(w2: u32) -> [u8; 64] {
        let mut regs = [0; 64];
        regs[W2].copy_from_slice(&w2.to_be_bytes());
        regs
    }

    /// A dual machine with these vCPU indices and rings.
    fn dual(icps: &[u32], w2s: &[u32]) -> Controllers {
        let icp = IcpEntry {
            xirr: 0,
            pending_priority: 0xff,
            mfrr: 0xff,
        };
        let tables = XiveTables {
            eas: Vec::new(),
            ends: Vec::new(),
        };
        Controllers {
            ics: Some(Vec::new()),
            icps: icps.iter().map(|i| (*i, icp)).collect(),
            xive: Some(Xive {
                status: Vec::new(),
                tables,
                order: ByteOrder::Little,
            }),
            tctxs: (0..).zip(w2s.iter().map(|w2| regs(*w2))).collect(),
            ov5: Ov5::EMPTY,
            irq_map: IrqMap::EMPTY,
            msi_blocks: Vec::new(),
        }
    }

    fn vcpu(server: u32, icp: u32, tctx: u32) -> Vcpu {
        Vcpu {
            server,
            icp: Some(icp),
            tctx: Some(tctx),
        }
    }

    #[test]
    fn plugged_vcpus_are_paired_by_their_cam() {
        // Measured: vsmt 8, cores 0, then 3, then 1 plugged.
        let c = dual(&[0, 3, 1], &[0x8000_0400, 0x8000_0418, 0x8000_0408]);
        let all = vec![vcpu(0, 0, 0), vcpu(8, 1, 2), vcpu(24, 3, 1)];
        assert_eq!(of(&c, None).unwrap(), all);
        assert_eq!(of(&c, Some(8)).unwrap(), all);
        let error = of(&c, Some(4)).unwrap_err().to_string();
        assert_eq!(
            error,
            "xive-tctx 2: server 8, but vCPU 1 at a vsmt of 4 is another"
        );
    }

    #[test]
    fn without_rings_the_index_and_vsmt_say_it() {
        let mut c = dual(&[0, 3], &[]);
        (c.xive, c.tctxs) = (None, BTreeMap::new());
        let servers = |vsmt| {
            of(&c, vsmt)
                .unwrap()
                .iter()
                .map(|v| v.server)
                .collect::<Vec<_>>()
        };
        assert_eq!(servers(None), [0, 3]);
        assert_eq!(servers(Some(8)), [0, 24]);
        assert!(of(&c, Some(u32::MAX)).is_err());
    }

    #[test]
    fn rings_that_name_no_vcpu_are_refused() {
        for w2s in [
            &[0x0000_0400, 0x8000_0401][..],
            &[0x8000_03ff, 0x8000_0401],
            &[0x8000_0400, 0x8000_0400],
            &[0x8000_0400],
        ] {
            assert!(of(&dual(&[0, 1], w2s), None).is_err(), "{w2s:x?}");
        }
    }
}
