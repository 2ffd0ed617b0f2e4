//! The slow model of `tests/model` as a controller under test: the replayer's self-check.

use super::engine::guest::{
    CasReply, Guest, IcMode, IcpState, IcsState, Outcome, Reply, RtasCall, Shape, Space,
};
use super::engine::rows::Row;
use super::model::machine::{self, Machine, Rtas};
use super::model::rules::Rules;
use super::model::xive::Layout;

/// A machine made of the model alone.
pub struct ModelGuest {
    machine: Machine,
}

impl ModelGuest {
    /// A machine at compat level `qemu-7.2`, but with QEMU's side of these rows.
    pub fn recorded(shape: &Shape, rows: &[Row]) -> Outcome<Box<dyn Guest>> {
        let quirk = |rules: Rules, row: &Row| rules.with_quirk(row.id);
        ModelGuest::start(shape, rows.iter().fold(Rules::QEMU_7_2, quirk))
    }

    /// A machine of this shape with these rules.
    pub fn start(shape: &Shape, rules: Rules) -> Outcome<Box<dyn Guest>> {
        let mut machine = Machine::new(&machine::Shape {
            ic_mode: match shape.ic_mode {
                IcMode::Xics => machine::IcMode::Xics,
                IcMode::Xive => machine::IcMode::Xive,
                IcMode::Dual => machine::IcMode::Dual,
            },
            rules,
            servers: shape.servers,
            lisns: Shape::LISNS,
            xics_base: Shape::XICS_BASE,
            layout: Layout {
                esb_base: Shape::ESB_BASE,
                end_base: Shape::END_BASE,
                store_eoi: false,
            },
            ram: shape.ram,
        });
        for &server in &shape.vcpus {
            machine.connect(server, true);
        }
        Ok(Box::new(ModelGuest { machine }))
    }
}

impl Guest for ModelGuest {
    fn hcall(&mut self, server: u32, opcode: u64, args: [u64; 9]) -> Outcome<Reply> {
        let (ret, args) = self.machine.hcall(server, opcode, args);
        Ok(Reply { ret, args })
    }

    fn rtas(&mut self, _server: u32, call: RtasCall, args: &[u32], nret: u32) -> Outcome<Vec<u32>> {
        let call = match call {
            RtasCall::SetXive => Rtas::SetXive,
            RtasCall::GetXive => Rtas::GetXive,
            RtasCall::IntOn => Rtas::IntOn,
            RtasCall::IntOff => Rtas::IntOff,
        };
        Ok(self.machine.rtas(call, args, nret))
    }

    fn load(&mut self, server: u32, space: Space, offset: u64, size: u8) -> Outcome<u64> {
        Ok(match space {
            Space::Esb => self.machine.esb_load(offset, size),
            Space::Tima => self.machine.tima_load(server, offset, size),
        })
    }

    fn store(
        &mut self,
        server: u32,
        space: Space,
        offset: u64,
        size: u8,
        value: u64,
    ) -> Outcome<()> {
        match space {
            Space::Esb => self.machine.esb_store(offset, size),
            Space::Tima => self.machine.tima_store(server, offset, size, value),
        }
        Ok(())
    }

    fn pulse(&mut self, lisn: u32) -> Outcome<()> {
        self.machine.pulse(lisn);
        Ok(())
    }

    fn set_level(&mut self, lisn: u32, level: bool) -> Outcome<()> {
        self.machine.set_level(lisn, level);
        Ok(())
    }

    fn claim(&mut self, lisn: u32, lsi: bool) -> Outcome<bool> {
        Ok(self.machine.claim(lisn, lsi))
    }

    fn free(&mut self, lisn: u32) -> Outcome<()> {
        self.machine.free(lisn);
        Ok(())
    }

    fn cas(&mut self, _server: u32, ov5: &[u8]) -> Outcome<CasReply> {
        let machine::CasReply { ret, byte23, xive } = self.machine.cas(ov5);
        Ok(CasReply { ret, byte23, xive })
    }

    fn machine_reset(&mut self) -> Outcome<()> {
        self.machine.reset();
        Ok(())
    }

    fn vcpu_reset(&mut self, server: u32) -> Outcome<()> {
        self.machine.vcpu_reset(server);
        Ok(())
    }

    fn line(&mut self, server: u32) -> Outcome<bool> {
        self.machine.look_at_lines();
        Ok(self.machine.line(server))
    }

    fn icp(&mut self, server: u32) -> Outcome<IcpState> {
        let icp = self
            .machine
            .xics
            .as_ref()
            .and_then(|x| x.icp.get(server as usize));
        let icp =
            icp.ok_or_else(|| super::engine::guest::GuestError("no such presenter".into()))?;
        Ok(IcpState {
            xirr: icp.xirr(),
            pending: icp.pending,
            mfrr: icp.mfrr,
        })
    }

    fn ics(&mut self, lisn: u32) -> Outcome<IcsState> {
        let src = self
            .machine
            .xics
            .as_ref()
            .and_then(|x| x.src.get(x.index(lisn)?));
        let src = src.ok_or_else(|| super::engine::guest::GuestError("no such source".into()))?;
        Ok(IcsState {
            prio: src.prio,
            status: src.status(),
        })
    }

    fn mem_read(&mut self, gpa: u64, bytes: &mut [u8]) -> Outcome<()> {
        self.machine.mem.read(gpa, bytes);
        Ok(())
    }

    fn mem_write(&mut self, gpa: u64, bytes: &[u8]) -> Outcome<()> {
        self.machine.mem.write(gpa, bytes);
        Ok(())
    }
}
