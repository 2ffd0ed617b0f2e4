//! QUERY: state for people and tools. Read-only.

use std::sync::atomic::Ordering;
use std::time::Instant;

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::words::icp;
use papr_intc_protocol::layout::{AtomicWord, Page, Storage};
use papr_intc_protocol::wire::handshake::{Ping, PingReply, Query, QueryReply, query};
use papr_intc_protocol::wire::{Request, Rest, Wire};
use serde_json::json;

use super::{Control, Core, Refused};
use crate::memory::QueueMemory;
use crate::monitor::decode;

/// Bytes of one piece of an answer.
const PIECE: usize = 60_000;

impl<M: QueueMemory> Core<M> {
    /// Text in the spirit of a monitor's `info pic`: presenters, then claimed sources. Lines are numbered:
    /// server numbers, then from `servers` up the sources.
    fn pic(&self, cursor: u64) -> QueryReply {
        let servers = self.machine().servers;
        let presenters = (narrow(cursor)..servers)
            .filter(|s| self.is_connected(*s))
            .map(|s| (u64::from(s), self.presenter_line(s)));
        let first = cursor.saturating_sub(servers.into());
        let sources = self.source_lines(first);
        lines(presenters.chain(sources.map(|(n, line)| (n + u64::from(servers), line))))
    }

    /// The claimed sources from number `first` on, with their lines.
    fn source_lines(&self, first: u64) -> impl Iterator<Item = (u64, String)> {
        self.claims()
            .claimed_from(narrow(first))
            .map(|n| (n.into(), self.source_line(n)))
    }

    fn presenter_line(&self, server: u32) -> String {
        let c = self.controller();
        let line = u8::from(c.line(server));
        match c.state.mode {
            Mode::Xics => {
                // Acquire: pairs with the swaps that led here.
                let word = Page::Icp(server);
                let icp = self.plane.storage().page(word).load(Ordering::Acquire);
                format!(
                    "CPU {server} XIRR={:08x} PP={:02x} MFRR={:02x} line={line}",
                    icp as u32,
                    icp::pp(icp),
                    icp::mfrr(icp)
                )
            }
            Mode::Xive => {
                let ring = c.xive.tima_load(server, 0x2_0010, 8);
                format!("CPU {server} OS ring {ring:016x} line={line}")
            }
        }
    }

    fn source_line(&self, lisn: u32) -> String {
        let c = self.controller();
        let kind = if self.claims().is_lsi(lisn) {
            "LSI"
        } else {
            "MSI"
        };
        match c.state.mode {
            Mode::Xics => match c.xics.source(lisn) {
                Some(s) => format!(
                    "{lisn:8x} {kind} server {} priority {:02x} saved {:02x} status {:02x}",
                    s.routing.server, s.routing.priority, s.routing.saved, s.status
                ),
                None => format!("{lisn:8x} {kind} (XIVE only)"),
            },
            Mode::Xive => {
                let pq = c.xive.esb_load((u64::from(lisn) << 17) + 0x1_0800, 8);
                let eas = c.xive.source_config(lisn.into()).unwrap_or(0);
                format!("{lisn:8x} {kind} PQ={pq:02b} EAS={eas:016x}")
            }
        }
    }
}

impl<M: QueueMemory + Clone> Control<M> {
    /// One JSON object on one line.
    fn status(&self, now: Instant) -> String {
        let mut status = json!({
            "version": self.versions.build,
            "serving": self.started,
            "generation": self.generation(),
            "uptime_ms": now.duration_since(self.since).as_millis() as u64,
            "requests": self.served,
        });
        if let Some(core) = &self.core
            && let (Some(all), Some(of)) = (
                status.as_object_mut(),
                decode::describe(core.plane.storage(), core.machine()).as_object_mut(),
            )
        {
            all.append(of);
        }
        status.to_string()
    }

    pub(super) fn ping(&self, ping: &Ping, now: Instant) -> PingReply {
        PingReply {
            cookie: ping.cookie,
            uptime_ms: now.duration_since(self.since).as_millis() as u64,
            served: self.served,
        }
    }

    /// PING and QUERY of somebody who only looks on: the monitor socket. Counts as no request.
    pub fn look(&self, code: u32, payload: &[u8], now: Instant) -> Result<Vec<u8>, Refused> {
        match code {
            Ping::CODE => {
                let ping = Ping::from_bytes(payload)?;
                Ok(self.ping(&ping, now).to_bytes())
            }
            Query::CODE => Ok(self.query(&Query::from_bytes(payload)?, now)?.to_bytes()),
            _ => Err(Refused::Phase(
                "the monitor socket serves PING and QUERY only",
            )),
        }
    }

    pub(super) fn query(&self, request: &Query, now: Instant) -> Result<QueryReply, Refused> {
        let cursor = request.cursor;
        match request.what {
            query::STATUS => Ok(piece(&self.status(now), cursor)),
            query::PIC => Ok(self.memory_core()?.pic(cursor)),
            query::SOURCES => Ok(lines(self.memory_core()?.source_lines(cursor))),
            query::VCPU => {
                let core = self.memory_core()?;
                let server = narrow(request.argument);
                core.check_connected(server)?;
                let line = core.controller().line(server);
                let text = json!({ "server": server, "line": line }).to_string();
                Ok(piece(&text, cursor))
            }
            other => Err(Refused::Value(format!("query {other} is not defined"))),
        }
    }
}

/// A number from outside as one that may be compared with the machine's.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// As many lines as fit into a piece; the number of the first that does not is the next cursor.
fn lines(numbered: impl Iterator<Item = (u64, String)>) -> QueryReply {
    let (mut text, mut next) = (String::new(), 0);
    for (number, line) in numbered {
        if text.len() + line.len() >= PIECE {
            next = number;
            break;
        }
        text.push_str(&line);
        text.push('\n');
    }
    let bytes = Rest(text.into_bytes());
    QueryReply { next, bytes }
}

/// The piece of `text` at `cursor` bytes.
fn piece(text: &str, cursor: u64) -> QueryReply {
    let start = text.floor_char_boundary(usize::try_from(cursor).unwrap_or(usize::MAX));
    let end = text.floor_char_boundary(start.saturating_add(PIECE));
    let next = if end < text.len() { end as u64 } else { 0 };
    QueryReply {
        next,
        bytes: Rest(text.as_bytes()[start..end].to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_comes_in_pieces_that_join() {
        let text = "äb".repeat(50_000);
        let (mut got, mut cursor) = (Vec::new(), 0);
        loop {
            let reply = piece(&text, cursor);
            got.extend(reply.bytes.0);
            cursor = reply.next;
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(got, text.as_bytes());
        assert_eq!(
            piece("abc", u64::MAX),
            QueryReply {
                next: 0,
                bytes: Rest(Vec::new())
            }
        );
    }

    #[test]
    fn lines_of_a_long_list_come_in_pieces_that_join() {
        let all = |first: u64| (first..10_000).map(|n| (n, format!("line {n}")));
        let (mut got, mut cursor, mut pieces) = (String::new(), 0, 0);
        loop {
            let reply = lines(all(cursor));
            assert!(reply.bytes.0.len() <= PIECE);
            got += std::str::from_utf8(&reply.bytes.0).unwrap();
            (cursor, pieces) = (reply.next, pieces + 1);
            if cursor == 0 {
                break;
            }
        }
        let expected: String = all(0).map(|(_, line)| line + "\n").collect();
        assert!(got == expected && pieces == 2, "{pieces}");
    }
}
