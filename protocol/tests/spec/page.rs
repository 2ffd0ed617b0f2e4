//! The pages as text, and what a test asks of them.

/// Chapter number and text.
pub const PAGES: [(u32, &str); 6] = [
    (1, include_str!("../../SPEC.md")),
    (2, include_str!("../../spec/2-shared-memory.md")),
    (3, include_str!("../../spec/3-data-plane.md")),
    (4, include_str!("../../spec/4-guest-calls.md")),
    (5, include_str!("../../spec/5-sequences.md")),
    (6, include_str!("../../spec/6-state.md")),
];

/// One chapter.
#[derive(Clone, Copy)]
pub struct Page(&'static str);

impl Page {
    /// The chapter with this number.
    pub fn of(chapter: u32) -> Self {
        let found = PAGES.iter().find(|(c, _)| *c == chapter);
        Self(found.expect("there are six chapters").1)
    }

    /// A piece of text, wherever lines break in it.
    pub fn says(self, what: &str) -> bool {
        let words: Vec<&str> = self.0.split_whitespace().collect();
        words.join(" ").contains(what)
    }

    /// A whole line.
    pub fn has_line(self, line: &str) -> bool {
        self.0.lines().any(|l| l == line)
    }

    /// The text under a heading, up to the next heading of its level or a higher one.
    pub fn section(self, heading: &str) -> Self {
        let level = heading.find(' ').expect("a heading has #s and a text");
        let start = self
            .0
            .match_indices(heading)
            .map(|(at, _)| at)
            .find(|at| self.0[at + heading.len()..].starts_with('\n'))
            .unwrap_or_else(|| panic!("no heading {heading:?}"));
        let body = &self.0[start + heading.len()..];
        let end = (1..=level)
            .filter_map(|n| body.find(&format!("\n{} ", "#".repeat(n))))
            .min();
        Self(&body[..end.unwrap_or(body.len())])
    }

    /// The text from a sentence on.
    pub fn after(self, what: &str) -> Self {
        let at = self
            .0
            .find(what)
            .unwrap_or_else(|| panic!("nowhere: {what:?}"));
        Self(&self.0[at + what.len()..])
    }

    /// The rows of the first table with this head line.
    pub fn table(self, head: &str) -> Vec<Vec<String>> {
        self.tables(head)
            .into_iter()
            .next()
            .unwrap_or_else(|| panic!("no table {head:?}"))
    }

    /// The rows of all tables with this head line.
    pub fn tables(self, head: &str) -> Vec<Vec<Vec<String>>> {
        let lines: Vec<&str> = self.0.lines().collect();
        let heads = lines.iter().enumerate().filter(|(_, l)| **l == head);
        heads
            .map(|(at, _)| {
                let rows = lines[at + 2..].iter().take_while(|l| l.starts_with('|'));
                rows.map(|l| cells(l)).collect()
            })
            .collect()
    }

    /// Lines that start so, without the start.
    pub fn lines_after(self, start: &str) -> Vec<&'static str> {
        self.0
            .lines()
            .filter_map(|l| l.strip_prefix(start))
            .collect()
    }
}

fn cells(row: &str) -> Vec<String> {
    let inner = row.trim_matches('|');
    inner.split('|').map(|c| c.trim().to_owned()).collect()
}

/// A number as people write it: `0x1f`, `65,536`.
pub fn number(text: &str) -> u64 {
    let plain = text.replace(',', "");
    let parsed = match plain.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => plain.parse(),
    };
    parsed.unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// `W-12` of a text that starts with `[W-12]`.
pub fn requirement(text: &str) -> Option<&str> {
    let id = text.strip_prefix('[')?;
    let id = &id[..id.find(']')?];
    let (letter, number) = id.split_once('-')?;
    let ok = matches!(letter, "W" | "S" | "P" | "G" | "Q" | "M")
        && !number.is_empty()
        && number.bytes().all(|b| b.is_ascii_digit());
    ok.then_some(id)
}

/// A number with commas, as the pages write it.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let first = (digits.len() - 1) % 3 + 1;
    let (head, tail) = digits.split_at(first);
    let groups = tail.as_bytes().chunks(3).map(String::from_utf8_lossy);
    groups.fold(head.to_owned(), |text, group| text + "," + &group)
}
