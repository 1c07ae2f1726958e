//! What people read: aligned tables, times and shares in words, and colours as far as there is a terminal.
//!
//! Text is made with its colours, as ANSI sequences; [`print`] takes them out where the output is no terminal, or
//! NO_COLOR is set (no-color.org). Cells are never wrapped or cut.

use std::fmt::{self, Display, Write as _};
use std::io::{ErrorKind, Write as _};

use anstyle::{AnsiColor, Style};
use anyhow::Result;
use k8s_openapi::jiff::Timestamp;

/// All is well.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// Something is wrong.
pub const BAD: Style = AnsiColor::Red.on_default().bold();
/// Something is worth a look.
pub const ODD: Style = AnsiColor::Yellow.on_default();
/// A heading.
pub const HEAD: Style = Style::new().bold();
/// As the rest.
pub const PLAIN: Style = Style::new();

/// Prints to the standard output.
///
/// # Errors
/// When it can't be written. That nobody reads on is no error.
pub fn print(text: &str) -> Result<()> {
    let mut out = anstream::stdout().lock();
    done(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// What came of writing, were it not that nobody reads on.
///
/// # Errors
/// When it failed for another reason.
pub fn done(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// The text in a style.
pub fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// One cell of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    style: Style,
    is_number: bool,
}

impl Cell {
    /// In a style.
    pub fn styled(style: Style, text: impl Into<String>) -> Self {
        Self { text: text.into(), style, is_number: false }
    }

    /// A number, or what stands in its place: to the right.
    pub fn number(text: impl ToString) -> Self {
        Self { text: text.to_string(), style: PLAIN, is_number: true }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::styled(PLAIN, text)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::styled(PLAIN, text)
    }
}

/// Columns as wide as their widest cell; nothing at all without rows.
#[derive(Clone, Debug)]
pub struct Table<const N: usize> {
    header: [&'static str; N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    /// With these headings, and no rows.
    pub fn new(header: [&'static str; N]) -> Self {
        Self { header, rows: Vec::new() }
    }

    /// With these rows.
    pub fn of(header: [&'static str; N], rows: impl IntoIterator<Item = [Cell; N]>) -> Self {
        Self { header, rows: rows.into_iter().collect() }
    }

    /// One row more.
    pub fn push(&mut self, row: [Cell; N]) {
        self.rows.push(row);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl<const N: usize> Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        let header = self.header.map(|title| Cell::styled(HEAD, title));
        let mut widths = self.header.map(str::len);
        // A column of numbers has its heading to the right as well.
        let mut numbers = [true; N];
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                widths[column] = widths[column].max(cell.text.chars().count());
                numbers[column] &= cell.is_number;
            }
        }
        for row in std::iter::once(&header).chain(&self.rows) {
            let mut line = String::new();
            let mut gap = 0;
            for (column, Cell { text, style, .. }) in row.iter().enumerate() {
                let pad = widths[column] - text.chars().count();
                let (before, after) = if numbers[column] { (pad, 0) } else { (0, pad) };
                if !text.is_empty() {
                    let _ = write!(line, "{:width$}{style}{text}{style:#}", "", width = gap + before);
                    gap = 0;
                }
                gap += after + 2 + if text.is_empty() { before } else { 0 };
            }
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

/// The items one after the other, or what is said where there is none.
pub fn list(items: &[impl Display], empty: &str) -> String {
    if items.is_empty() {
        return empty.to_owned();
    }
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// So many seconds, to the two largest units: `3d 4h`, `12m 5s`, `0.4 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    let units = [("d", whole / 86_400), ("h", whole / 3600 % 24), ("m", whole / 60 % 60), ("s", whole % 60)];
    match units.iter().position(|(_, count)| *count > 0) {
        None => format!("{:.1} s", seconds.max(0.0)),
        Some(3) => format!("{seconds:.1} s"),
        Some(first) => {
            let shown = units[first..].iter().take(2).filter(|(_, count)| *count > 0);
            shown.map(|(unit, count)| format!("{count}{unit}")).collect::<Vec<_>>().join(" ")
        }
    }
}

/// How long before `now` it was `then`, both RFC 3339: `4m 2s ago`; `then` itself if either is no time.
pub fn ago(then: &str, now: &str) -> String {
    match (then.parse::<Timestamp>(), now.parse::<Timestamp>()) {
        (Ok(at), Ok(now)) => format!("{} ago", duration(now.duration_since(at).as_secs_f64().max(0.0))),
        _ => then.to_owned(),
    }
}

/// The time of day of an RFC 3339 time, to the second, with its date: `2026-01-02 15:04:05Z`.
pub fn clock(time: &str) -> String {
    match time.parse::<Timestamp>() {
        Ok(at) => at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => time.to_owned(),
    }
}

/// A part of a whole as a bar of ten and a number: `###·······  31 %`.
pub fn bar(part: f64) -> String {
    let part = part.clamp(0.0, 1.0);
    let filled = (part * 10.0).ceil() as usize;
    format!("{}{} {:>3.0} %", "#".repeat(filled), "·".repeat(10 - filled), part * 100.0)
}

/// A number with what it counts: `1 pod`, `2 pods`.
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// As it is without colours.
#[cfg(test)]
pub(super) fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let rows = [["api".into(), Cell::number(7), "x".into()], ["w".into(), Cell::number(1234), "".into()]];
        let table = Table::of(["NAME", "COUNT", ""], rows).to_string();
        assert_eq!(plain(&table), "NAME  COUNT\napi       7  x\nw      1234\n");
        assert_eq!(Table::<1>::new(["NAME"]).to_string(), "");
    }

    #[test]
    fn a_colour_takes_no_room() {
        let rows = [[Cell::styled(BAD, "no"), "a".into()], ["yes!".into(), "b".into()]];
        let table = Table::of(["OK", "X"], rows).to_string();
        assert!(table.contains("\u{1b}["), "{table:?}");
        assert_eq!(plain(&table), "OK    X\nno    a\nyes!  b\n");
    }

    #[test]
    fn durations_are_told_by_their_two_largest_units() {
        let told = [0.0, 0.44, 59.3, 60.0, 3_605.0, 90_061.0].map(duration);
        assert_eq!(told, ["0.0 s", "0.4 s", "59.3 s", "1m", "1h", "1d 1h"]);
        assert_eq!(ago("2026-01-02T00:00:00Z", "2026-01-02T00:04:02Z"), "4m 2s ago");
        assert_eq!(ago("never", "2026-01-02T00:04:02Z"), "never");
        assert_eq!(clock("2026-01-02T15:04:05.123Z"), "2026-01-02 15:04:05Z");
    }

    #[test]
    fn what_is_not_empty_shows_in_a_bar() {
        assert_eq!(bar(0.0), "··········   0 %");
        assert_eq!(bar(0.004), "#·········   0 %");
        assert_eq!(bar(1.7), "########## 100 %");
    }
}
