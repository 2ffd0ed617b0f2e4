//! A stream that comes in: read once, checked as a whole, and then a [`State`] or, by `super::words`, the words of a
//! machine. Sources, of which there may be a million, stay in the stream.

use std::convert::Infallible;

use prost::bytes::Bytes;

use super::blocks::{Block, Blocks, XicsBlock, XiveBlock};
use super::columns::{Columns, EndMessage};
use super::model::*;
use super::sources::{InStream, Received};
use super::stream::{END, MANDATORY, Section, Sections, StreamError};
use super::validate::Checker;
use crate::layout::Machine;
use crate::layout::geometry::ENDS_PER_SERVER;

/// A whole stream, which is valid.
#[derive(Debug)]
pub struct Incoming {
    stream: Bytes,
    /// All but the sources.
    lists: State,
    xics: Received<XicsBlock>,
    xive: Received<XiveBlock>,
}

impl Incoming {
    /// Reads a whole stream.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(stream: impl Into<Bytes>) -> Result<Self, StreamError> {
        let stream = stream.into();
        let mut sections = Sections::new(&stream)?;
        let head = Head::take(&mut sections)?;
        let mut state = Self {
            stream: stream.clone(),
            lists: State {
                head,
                claims: Vec::new(),
                inputs: Vec::new(),
                xics: Xics::default(),
                xive: Xive::default(),
            },
            xics: Received::new(),
            xive: Received::new(),
        };
        let mut count = 1;
        loop {
            let start = sections.position() as u64;
            let Some(section) = sections.next_section()? else {
                return Err(StreamError::Truncated(stream.len()));
            };
            if section.name == END {
                check_end(section.payload, count, start)?;
                break;
            }
            count += 1;
            state.take(&section)?;
        }
        if sections.position() != stream.len() {
            let what = format!("{} bytes follow it", stream.len() - sections.position());
            let section = END.to_owned();
            return Err(StreamError::Section { section, what });
        }
        state.validate()?;
        Ok(state)
    }

    /// Takes what a section holds. Lists are checked as wholes, at the end.
    fn take(&mut self, section: &Section<'_>) -> Result<(), StreamError> {
        let lists = &mut self.lists;
        let machine = &lists.head.machine;
        let (sources, servers, payload) = (machine.sources, machine.servers, section.payload);
        let ends = servers * ENDS_PER_SERVER;
        match section.name {
            Claims::NAME => Claims::read(payload, sources, &mut lists.claims),
            Input::NAME => Input::read(payload, sources, &mut lists.inputs),
            XicsBlock::NAME => self.xics.take(&self.stream, payload, sources),
            Icp::NAME => Icp::read(payload, servers, &mut lists.xics.icps),
            XiveBlock::NAME => self.xive.take(&self.stream, payload, sources),
            End::NAME => End::read(payload, ends, &mut lists.xive.ends),
            Ring::NAME => Ring::read(payload, servers, &mut lists.xive.rings),
            other if section.flags & MANDATORY != 0 => {
                Err(StreamError::UnknownSection(other.to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn validate(&self) -> Result<(), StreamError> {
        let lists = &self.lists;
        let checker = Checker::new(&lists.head, &lists.claims)?;
        self.xics().each(|held| checker.listed(held))?;
        checker.icps(&lists.xics.icps)?;
        self.xive().each(|held| checker.listed(held))?;
        checker.ends(&lists.xive.ends)?;
        checker.rings(&lists.xive.rings)?;
        checker.inputs(&lists.inputs)?;
        Ok(())
    }

    pub(super) fn xics(&self) -> InStream<'_, XicsBlock> {
        self.xics.blocks(&self.stream, &self.lists.claims)
    }

    pub(super) fn xive(&self) -> InStream<'_, XiveBlock> {
        self.xive.blocks(&self.stream, &self.lists.claims)
    }

    /// All but the sources, whose lists are empty.
    pub fn lists(&self) -> &State {
        &self.lists
    }

    /// The same state on a machine that may have more controllers.
    pub fn on(mut self, machine: Machine) -> Self {
        let head = &mut self.lists.head;
        let had_xive = head.machine.ic_mode.has_xive();
        head.machine = machine;
        if machine.ic_mode.has_xive() && !had_xive {
            let ipis = State::reset(head.clone()).claims;
            self.lists.claims.splice(0..0, ipis);
        }
        self
    }

    /// With its sources one by one.
    pub fn into_state(self) -> State {
        let (xics, xive) = (entries(self.xics()), entries(self.xive()));
        let mut state = self.lists;
        (state.xics.sources, state.xive.sources) = (xics, xive);
        state
    }
}

fn entries<B: Block>(blocks: impl Blocks<B>) -> Vec<B::Entry> {
    let mut entries = Vec::new();
    let done: Result<(), Infallible> = blocks.each(|held| {
        entries.extend(held.entries().map(|(entry, _)| entry));
        Ok(())
    });
    let Ok(()) = done;
    entries
}

fn check_end(payload: &[u8], sections: u32, bytes: u64) -> Result<(), StreamError> {
    let end: EndMessage = super::columns::decode(END, payload)?;
    if end == (EndMessage { sections, bytes }) {
        return Ok(());
    }
    let what = format!(
        "it counts {} sections and {} bytes, there were {sections} and {bytes}",
        end.sections, end.bytes
    );
    Err(StreamError::Payload { section: END, what })
}

impl State {
    /// Reads a whole stream. What it returns is valid.
    pub fn decode(bytes: &[u8]) -> Result<Self, StreamError> {
        Ok(Incoming::read(Bytes::copy_from_slice(bytes))?.into_state())
    }
}
