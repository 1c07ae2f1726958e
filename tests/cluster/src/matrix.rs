//! Who reaches whom: a table of what is expected, beside what is observed.
//!
//! ```text
//!              web  far
//!       web     .    .       .  is answered, in every way that is tried
//!       guest   X    .       X  gets no answer, in no way
//!       node1   .    -       r  is refused, in every way; -  is not tried
//! ```
//!
//! All cells are tried at the same time, by one process in each place. A change needs a moment to reach every node: so
//! what is expected may come late, but then twice.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fairlead_harness::{Outcome, Place, Protocol, Try, Way};

use crate::ask::{PATIENCE, within};

/// How long a try may take: what is not answered by then is not answered.
const SILENCE: Duration = Duration::from_millis(400);
/// How many of the tries that went otherwise are told.
const TOLD: usize = 12;

/// Who tries and who is tried.
#[derive(Clone, Default)]
pub struct Matrix<'a> {
    askers: Vec<Asker<'a>>,
    targets: Vec<(String, Vec<Way>)>,
}

#[derive(Clone)]
struct Asker<'a> {
    name: String,
    place: &'a Place,
    /// One of each family; the system's choice where there is none.
    sources: Vec<IpAddr>,
}

/// What is tried of one cell, and what came of it.
type Cell = Vec<(Way, Outcome)>;

impl<'a> Matrix<'a> {
    /// With one more who tries.
    #[must_use]
    pub fn asker(self, name: &str, place: &'a Place) -> Self {
        self.asker_from(name, place, &[])
    }

    /// With one more who tries from these addresses, one of each family.
    #[must_use]
    pub fn asker_from(mut self, name: &str, place: &'a Place, sources: &[IpAddr]) -> Self {
        self.askers.push(Asker { name: name.to_owned(), place, sources: sources.to_vec() });
        self
    }

    /// With one more who is tried in all these ways.
    #[must_use]
    pub fn target(mut self, name: &str, ways: Vec<Way>) -> Self {
        self.targets.push((name.to_owned(), ways));
        self
    }

    /// What is observed is, sooner or later, what the table says, and once more.
    ///
    /// # Errors
    /// When it is otherwise for too long: the table of what is observed, and what differs.
    pub fn shows(&self, table: &str) -> Result<()> {
        self.shows_within(PATIENCE, table)
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// As [`shows`](Self::shows).
    pub fn shows_within(&self, patience: Duration, table: &str) -> Result<()> {
        let expected = Table::read(table)?;
        within(patience, || self.compare(&expected))?;
        self.compare(&expected)
    }

    /// What is observed now is what the table says.
    ///
    /// # Errors
    /// As [`shows`](Self::shows).
    pub fn shows_now(&self, table: &str) -> Result<()> {
        self.compare(&Table::read(table)?)
    }

    fn compare(&self, expected: &Table) -> Result<()> {
        let observed = self.observe(expected)?;
        let mut told = Vec::new();
        let mut table = String::new();
        let width = expected.rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        write!(table, "{:width$}", "")?;
        for name in &expected.columns {
            write!(table, "  {name:>4}")?;
        }
        for (row, symbols) in &expected.rows {
            write!(table, "\n{row:width$}")?;
            for (column, &wanted) in expected.columns.iter().zip(symbols) {
                let cell = observed.get(&(row.as_str(), column.as_str()));
                let seen = cell.map_or('-', |cell| symbol(cell.as_slice()));
                let shown = if seen == wanted { seen.to_string() } else { format!("{seen}({wanted})") };
                write!(table, "  {shown:>0$}", column.len().max(4))?;
                if seen != wanted {
                    let odd = cell.into_iter().flatten().filter(|(_, outcome)| symbol_of(outcome) != wanted);
                    told.extend(odd.map(|(way, outcome)| format!("{row} {way}: {outcome}")));
                }
            }
        }
        if told.is_empty() {
            return Ok(());
        }
        let more = told.len().saturating_sub(TOLD);
        told.truncate(TOLD);
        if more > 0 {
            told.push(format!("and {more} more"));
        }
        bail!("observed, and in brackets what is expected:\n{table}\n{}", told.join("\n"))
    }

    /// Tries all cells that the table speaks of.
    fn observe<'b>(&self, expected: &'b Table) -> Result<BTreeMap<(&'b str, &'b str), Cell>> {
        let mut begun = Vec::new();
        for (row, symbols) in &expected.rows {
            let asker = self.askers.iter().find(|asker| asker.name == *row);
            let asker = asker.with_context(|| format!("nobody is called {row}"))?;
            let mut tries = Vec::new();
            let mut columns = Vec::new();
            for (column, _) in expected.columns.iter().zip(symbols).filter(|(_, symbol)| **symbol != '-') {
                let target = self.targets.iter().find(|(name, _)| name == column);
                let (_, ways) = target.with_context(|| format!("nobody is called {column}"))?;
                tries.extend(ways.iter().map(|&way| asker.attempt(way)));
                columns.extend(ways.iter().map(|_| column.as_str()));
            }
            let trying = asker.place.tries(&tries, SILENCE).with_context(|| format!("try from {row}"))?;
            begun.push((row, columns, tries, trying));
        }
        let mut observed = BTreeMap::<_, Cell>::new();
        for (row, columns, tries, trying) in begun {
            let outcomes = trying.outcomes().with_context(|| format!("try from {row}"))?;
            ensure!(outcomes.len() == tries.len(), "{row} tells of {} tries", outcomes.len());
            for ((column, one), outcome) in columns.into_iter().zip(tries).zip(outcomes) {
                observed.entry((row.as_str(), column)).or_default().push((one.way, outcome));
            }
        }
        Ok(observed)
    }
}

impl Asker<'_> {
    fn attempt(&self, way: Way) -> Try {
        let like = |source: &&IpAddr| source.is_ipv4() == way.address().is_ipv4();
        Try { way, source: self.sources.iter().find(like).copied() }
    }
}

/// What is expected.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    columns: Vec<String>,
    rows: Vec<(String, Vec<char>)>,
}

impl Table {
    fn read(text: &str) -> Result<Self> {
        let mut lines =
            text.lines().map(|line| line.split_whitespace()).filter(|words| words.clone().count() > 0);
        let columns: Vec<String> = lines.next().context("an empty table")?.map(str::to_owned).collect();
        let mut rows = Vec::new();
        for mut words in lines {
            let name = words.next().context("a row without name")?.to_owned();
            let symbols: Vec<char> = words.flat_map(str::chars).collect();
            ensure!(symbols.len() == columns.len(), "the row {name} has {} cells", symbols.len());
            ensure!(symbols.iter().all(|symbol| ".Xr-".contains(*symbol)), "the row {name}: {symbols:?}");
            rows.push((name, symbols));
        }
        Ok(Self { columns, rows })
    }
}

/// What all ways of a cell have in common; `?` if nothing.
fn symbol(cell: &[(Way, Outcome)]) -> char {
    let mut symbols = cell.iter().map(|(_, outcome)| symbol_of(outcome));
    let first = symbols.next().unwrap_or('-');
    if symbols.all(|symbol| symbol == first) { first } else { '?' }
}

fn symbol_of(outcome: &Outcome) -> char {
    match outcome {
        Outcome::Reached => '.',
        Outcome::Silent => 'X',
        Outcome::Refused => 'r',
        Outcome::Failed(_) => '?',
    }
}

/// Requests to that port of each of the addresses, by these protocols.
pub fn requests(addresses: &[IpAddr], port: u16, protocols: &[Protocol]) -> Vec<Way> {
    let each = |&protocol| addresses.iter().map(move |&ip| Way::Request(protocol, (ip, port).into()));
    protocols.iter().flat_map(each).collect()
}

/// Echoes to each of the addresses.
pub fn echoes(addresses: &[IpAddr]) -> Vec<Way> {
    addresses.iter().map(|&address| Way::Echo(address)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_by_words_and_checked() {
        let table = Table::read("\n     web far\n  web  .   X\n  node1 r  -\n").unwrap();
        assert_eq!(table.columns, ["web", "far"]);
        assert_eq!(table.rows, [("web".to_owned(), vec!['.', 'X']), ("node1".to_owned(), vec!['r', '-'])]);
        for nonsense in ["", "web far\nweb .", "web\nweb y"] {
            assert!(Table::read(nonsense).is_err(), "{nonsense:?}");
        }
    }

    #[test]
    fn a_cell_is_one_thing_only_if_all_its_ways_are() {
        let way = Way::Echo([127, 0, 0, 1].into());
        let cell = |outcomes: &[Outcome]| outcomes.iter().map(|o| (way, o.clone())).collect::<Cell>();
        assert_eq!(symbol(&cell(&[Outcome::Silent, Outcome::Silent])), 'X');
        assert_eq!(symbol(&cell(&[Outcome::Silent, Outcome::Reached])), '?');
        assert_eq!(symbol(&cell(&[Outcome::Failed(String::new())])), '?');
    }
}
