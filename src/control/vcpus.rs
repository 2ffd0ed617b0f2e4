//! vCPUs come and are reset. How they go is in [`super::barrier`].

use std::fs::File;
use std::os::fd::OwnedFd;

use papr_intc_protocol::plane::Host;
use papr_intc_protocol::wire::vcpu::{VcpuConnect, VcpuConnectReply, WATCH};

use super::descriptors::{check_channel, check_eventfd};
use super::{Control, Core, Effect, Refused};
use crate::memory::QueueMemory;

impl<M: QueueMemory> Core<M> {
    /// The machine has the server number.
    pub(super) fn check_server(&self, server: u32) -> Result<(), Refused> {
        let servers = self.machine().servers;
        if server < servers {
            return Ok(());
        }
        Err(Refused::ServerRange {
            server,
            last: servers - 1,
        })
    }

    /// The vCPU exists, in every controller that the machine has.
    pub(super) fn is_connected(&self, server: u32) -> bool {
        let c = self.controller();
        server < c.geometry.servers()
            && if c.machine.ic_mode.has_xics() {
                c.xics.is_connected(server)
            } else {
                c.xive.is_connected(server)
            }
    }

    pub(super) fn check_connected(&self, server: u32) -> Result<(), Refused> {
        if self.is_connected(server) {
            Ok(())
        } else {
            Err(Refused::NoServer(server))
        }
    }

    fn connect(&self, server: u32) {
        let c = self.controller();
        if c.machine.ic_mode.has_xive() && !c.xive.is_connected(server) {
            c.xive.connect(server);
        }
        if c.machine.ic_mode.has_xics() {
            c.xics.connect(server);
        }
    }
}

impl<M: QueueMemory + Clone> Control<M> {
    pub(super) fn vcpu_connect(
        &mut self,
        connect: &VcpuConnect,
        fds: Vec<OwnedFd>,
    ) -> Result<VcpuConnectReply, Refused> {
        let core = self.memory_core()?;
        if !fds.is_empty() && fds.len() != connect.servers.len() {
            let expected = "none, or one for each server";
            return Err(Refused::Descriptors {
                found: fds.len(),
                expected,
            });
        }
        connect
            .servers
            .iter()
            .try_for_each(|server| core.check_server(*server))?;
        fds.iter().try_for_each(|fd| check_eventfd(fd, true))?;
        let host = core.plane.host();
        for (server, fd) in connect.servers.iter().zip(fds) {
            host.set_kick(*server, Some(File::from(fd)));
        }
        for server in &connect.servers {
            core.connect(*server);
            // The eventfd may be new: whoever waits on it looks once more.
            host.kick(*server);
        }
        let connected = (0..core.machine().servers)
            .filter(|s| core.is_connected(*s))
            .count();
        Ok(VcpuConnectReply {
            connected: connected as u32,
            zero: 0,
        })
    }

    pub(super) fn vcpu_reset(&mut self, server: u32) -> Result<(), Refused> {
        let core = self.core()?;
        core.check_connected(server)?;
        let c = core.controller();
        if c.machine.ic_mode.has_xics() {
            c.xics.vcpu_reset(server);
        }
        if c.machine.ic_mode.has_xive() {
            c.xive.vcpu_reset(server);
        }
        Ok(())
    }

    pub(super) fn vcpu_channel(&self, server: u32, socket: OwnedFd) -> Result<Effect, Refused> {
        if server != WATCH {
            let core = self.memory_core()?;
            core.check_server(server)?;
            core.check_connected(server)?;
        }
        check_channel(&socket)?;
        Ok(Effect::AddChannel { server, socket })
    }
}
