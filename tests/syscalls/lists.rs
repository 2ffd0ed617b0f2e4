//! The two tables of docs/integrating.md: groups of system calls, and which of them each thread makes in each phase.

use std::collections::{BTreeMap, BTreeSet};

pub type Calls = BTreeSet<String>;

/// Thread names of each column.
pub const COLUMNS: [(&str, &[&str]); 5] = [
    ("caller", &["vmm"]),
    ("vcpu", &["vcpu", "device"]),
    ("watch", &["papr-intc-watch"]),
    ("io", &["papr-intc-io"]),
    ("daemon", &["papr-intc", "vhost-user"]),
];

/// Rows of what any phase may have, and of what the walk does not reach.
const ANY: [&str; 2] = ["any", "rare"];
/// The phase in which nobody does anything, not even what any phase may have.
const REST: &str = "rest";

pub struct Lists {
    groups: BTreeMap<String, Calls>,
    /// Phase and column.
    cells: BTreeMap<(String, String), Calls>,
}

impl Lists {
    /// As documented.
    pub fn read() -> Self {
        Self::without("")
    }

    /// As if that group were empty.
    pub fn without(group: &str) -> Self {
        let text = include_str!("../../docs/integrating.md");
        let mut lists = Self {
            groups: BTreeMap::new(),
            cells: BTreeMap::new(),
        };
        for row in table(text, "| group | calls |") {
            let calls = match row[0] == group {
                true => Calls::new(),
                false => lists.calls("", row[1]),
            };
            lists.groups.insert(row[0].to_owned(), calls);
        }
        for row in table(text, "| phase | caller | vcpu | watch | io | daemon |") {
            for ((column, _), cell) in COLUMNS.iter().zip(&row[1..]) {
                let calls = lists.calls(column, cell);
                let place = (row[0].to_owned(), (*column).to_owned());
                lists.cells.insert(place, calls);
            }
        }
        assert!(lists.cells.len() > 50, "tables of another form");
        lists
    }

    /// Calls in backticks, groups, and phases whose cell of this column is meant.
    fn calls(&self, column: &str, cell: &str) -> Calls {
        let words = cell.split([' ', ',']);
        let words = words.filter(|word| !word.is_empty() && *word != "or");
        words.flat_map(|word| self.word(column, word)).collect()
    }

    fn word(&self, column: &str, word: &str) -> Calls {
        if let Some(call) = word.strip_prefix('`') {
            return Calls::from([call.trim_end_matches('`').to_owned()]);
        }
        let phase = self.cells.get(&(word.to_owned(), column.to_owned()));
        phase.cloned().unwrap_or_else(|| self.group(word))
    }

    pub fn group(&self, name: &str) -> Calls {
        let group = self.groups.get(name);
        group.unwrap_or_else(|| panic!("no group {name:?}")).clone()
    }

    /// What a thread may do in a phase; none if the table does not speak of it.
    pub fn allowed(&self, phase: &str, thread: &str) -> Option<Calls> {
        let (column, _) = COLUMNS.iter().find(|(_, names)| names.contains(&thread))?;
        let cell = |phase: &str| self.cells.get(&(phase.to_owned(), (*column).to_owned()));
        let always = ANY.iter().filter(|_| phase != REST);
        let always = always.filter_map(|row| cell(row)).flatten();
        Some(cell(phase)?.iter().chain(always).cloned().collect())
    }

    /// A whole column.
    pub fn column(&self, name: &str) -> Calls {
        let of = |((_, column), calls): (&(String, String), &Calls)| {
            (column == name).then(|| calls.clone())
        };
        self.cells.iter().filter_map(of).flatten().collect()
    }
}

/// Cells of the rows of the table with this head.
fn table<'a>(text: &'a str, head: &str) -> Vec<Vec<&'a str>> {
    let from = text.lines().skip_while(|line| *line != head).skip(2);
    let rows = from.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}
