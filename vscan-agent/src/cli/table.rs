//! Aligned columns for terminals: widths as the terminal sees them, long cells shortened to fit, colours.

use crate::observe::wire::printable;
use std::io::{self, IsTerminal, Write};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Where text goes: whether colours are welcome, and how wide it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// Whether escapes for colours may be written.
    pub(super) colour: bool,
    /// Columns of the terminal; none: not a terminal, nothing is shortened.
    pub(super) width: Option<usize>,
}

impl Screen {
    /// Standard output: colours on a terminal, unless `NO_COLOR` (no-color.org) is set.
    #[must_use]
    pub(super) fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        let width = rustix::termios::tcgetwinsize(io::stdout())
            .ok()
            .map(|size| usize::from(size.ws_col))
            .filter(|w| terminal && *w > 0);
        Self { colour: terminal && !no_color && !dumb, width }
    }
}

/// How a cell is coloured (SGR codes of ECMA-48).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Colour {
    /// As the terminal has it.
    #[default]
    Plain,
    /// Less important.
    Dim,
    /// Good.
    Green,
    /// Doubtful.
    Yellow,
    /// Bad.
    Red,
    /// Broken.
    Magenta,
    /// A heading.
    Bold,
}

impl Colour {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Dim => Some("2"),
            Self::Green => Some("32"),
            Self::Yellow => Some("33"),
            Self::Red => Some("1;31"),
            Self::Magenta => Some("35"),
            Self::Bold => Some("1"),
        }
    }

    /// The text in this colour, if colours are welcome.
    #[must_use]
    pub(super) fn paint(self, text: &str, screen: Screen) -> String {
        match self.code() {
            Some(code) if screen.colour => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// A cell: text that is safe on a terminal, and its colour.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    colour: Colour,
}

impl Cell {
    /// Makes any text safe; an empty one becomes `-`.
    #[must_use]
    pub(super) fn new(text: &str) -> Self {
        let text = if text.is_empty() { "-".to_owned() } else { printable(text).into_owned() };
        Self { text, colour: Colour::Plain }
    }

    /// The same in a colour.
    #[must_use]
    pub(super) fn colour(mut self, colour: Colour) -> Self {
        self.colour = colour;
        self
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// Its heading.
    pub(super) name: &'static str,
    /// Whether its cells end at its right edge.
    pub(super) right: bool,
    /// The width below which it is not shortened; none: never shortened.
    pub(super) shrinks_to: Option<usize>,
    /// The width that it has at least, so that rows which come later line up.
    pub(super) least: usize,
    /// When the terminal is too narrow for all, columns are left out from the highest number down; 0: never.
    pub(super) drops: u8,
}

/// Rows below headings.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

/// Spaces between columns.
const GAP: usize = 2;

impl Table {
    /// An empty table.
    #[must_use]
    pub(super) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are columns.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// The width of each column for what is in the table now.
    #[must_use]
    pub(super) fn widths(&self, screen: Screen) -> Vec<usize> {
        let mut widths: Vec<usize> =
            self.columns.iter().map(|c| c.name.width().max(c.least)).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
        let Some(room) = screen.width else { return widths };
        let total = |widths: &[usize]| {
            let shown = widths.iter().filter(|w| **w > 0).count();
            widths.iter().sum::<usize>() + GAP * shown.saturating_sub(1)
        };
        let mut natural = widths.clone();
        // the widest column that may shrink gives way first; when none can, the least important one goes
        while total(&widths) > room {
            let shrinks = |n: &usize| self.columns[*n].shrinks_to.is_some_and(|l| widths[*n] > l);
            let drops = |n: &usize| self.columns[*n].drops > 0 && widths[*n] > 0;
            let all = 0..widths.len();
            if let Some(n) = all.clone().filter(shrinks).max_by_key(|n| widths[*n]) {
                widths[n] -= 1;
            } else if let Some(n) = all.filter(drops).max_by_key(|n| self.columns[*n].drops) {
                natural[n] = 0;
                widths.clone_from(&natural);
            } else {
                break;
            }
        }
        widths
    }

    /// The width of each column for rows that are still to come: what can be shortened shares the room that is left.
    #[must_use]
    pub(super) fn widths_to_fill(&self, screen: Screen) -> Vec<usize> {
        let mut widths = self.widths(screen);
        let Some(room) = screen.width else { return widths };
        let growing: Vec<usize> = (0..widths.len())
            .filter(|n| self.columns[*n].shrinks_to.is_some() && widths[*n] > 0)
            .collect();
        let shown = widths.iter().filter(|w| **w > 0).count();
        let total = widths.iter().sum::<usize>() + GAP * shown.saturating_sub(1);
        for n in 0..room.saturating_sub(total) {
            if let Some(column) = growing.get(n % growing.len().max(1)) {
                widths[*column] += 1;
            }
        }
        widths
    }

    /// Writes the headings.
    ///
    /// # Errors
    /// What `out` says.
    pub(super) fn headings(
        &self,
        out: &mut dyn Write,
        widths: &[usize],
        screen: Screen,
    ) -> io::Result<()> {
        let cells: Vec<Cell> =
            self.columns.iter().map(|c| Cell::new(c.name).colour(Colour::Bold)).collect();
        self.line(out, &cells, widths, screen)
    }

    /// Writes one row.
    ///
    /// # Errors
    /// What `out` says.
    pub(super) fn line(
        &self,
        out: &mut dyn Write,
        cells: &[Cell],
        widths: &[usize],
        screen: Screen,
    ) -> io::Result<()> {
        let mut first = true;
        for (n, ((column, cell), width)) in self.columns.iter().zip(cells).zip(widths).enumerate() {
            if *width == 0 {
                continue;
            }
            if !std::mem::take(&mut first) {
                write!(out, "{:GAP$}", "")?;
            }
            // where nothing has to fit, a line out of column says more than a shortened one
            let text = match (column.shrinks_to, screen.width) {
                (Some(_), Some(_)) => shorten(&cell.text, *width),
                _ => cell.text.clone(),
            };
            let padding = width.saturating_sub(text.width());
            let text = cell.colour.paint(&text, screen);
            if column.right {
                write!(out, "{:padding$}{text}", "")?;
            } else if n + 1 == self.columns.len() {
                write!(out, "{text}")?;
            } else {
                write!(out, "{text}{:padding$}", "")?;
            }
        }
        writeln!(out)
    }

    /// Writes headings and rows.
    ///
    /// # Errors
    /// What `out` says.
    pub(super) fn write(&self, out: &mut dyn Write, screen: Screen) -> io::Result<()> {
        self.write_with(out, &self.widths(screen), screen)
    }

    /// Writes headings and rows in columns of these widths.
    ///
    /// # Errors
    /// What `out` says.
    pub(super) fn write_with(
        &self,
        out: &mut dyn Write,
        widths: &[usize],
        screen: Screen,
    ) -> io::Result<()> {
        self.headings(out, widths, screen)?;
        self.rows.iter().try_for_each(|row| self.line(out, row, widths, screen))
    }
}

/// Takes characters out of the middle: beginnings and ends of paths and addresses say the most.
fn shorten(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let mut head = String::new();
    let mut used = 0;
    for c in text.chars() {
        let w = c.width().unwrap_or(0);
        if used + w > room.div_ceil(2) {
            break;
        }
        used += w;
        head.push(c);
    }
    let mut tail = Vec::new();
    for c in text.chars().rev() {
        let w = c.width().unwrap_or(0);
        if used + w > room {
            break;
        }
        used += w;
        tail.push(c);
    }
    head.push('…');
    head.extend(tail.into_iter().rev());
    head
}

/// Bytes for people: `0`, `999`, `1.2K`, `34M`; in powers of 1024, three digits at most.
#[must_use]
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if n < 1000 {
        return n.to_string();
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.5 {
        value /= 1024.0;
        unit += 1;
    }
    if value < 9.95 {
        format!("{value:.1}{}", UNITS[unit])
    } else {
        format!("{value:.0}{}", UNITS[unit])
    }
}

/// A time for people: `400ms`, `1.2s`, `12s`, `3m04s`, `2h13m`, `5d02h`.
#[must_use]
pub(super) fn age(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to what fits"
    )]
    let whole = seconds.clamp(0.0, 1e12) as u64;
    match whole {
        0 => format!("{:.0}ms", seconds.max(0.0) * 1000.0),
        1..10 => format!("{seconds:.1}s"),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3600..86_400 => format!("{}h{:02}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Screen = Screen { colour: false, width: None };

    fn column(name: &'static str, right: bool, shrinks_to: Option<usize>) -> Column {
        Column { name, right, shrinks_to, least: 0, drops: 0 }
    }

    fn drawn(table: &Table, screen: Screen) -> String {
        let mut out = Vec::new();
        table.write(&mut out, screen).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_line_up_also_with_wide_characters() {
        let mut table = Table::new(&[
            column("NAME", false, None),
            column("SIZE", true, None),
            column("LAST", false, None),
        ]);
        table.row(vec![Cell::new("a"), Cell::new("1"), Cell::new("x")]);
        table.row(vec![Cell::new("日本語"), Cell::new("12345"), Cell::new("")]);
        assert_eq!(
            drawn(&table, PLAIN),
            "NAME     SIZE  LAST\na           1  x\n日本語  12345  -\n"
        );
    }

    #[test]
    fn long_cells_give_way_to_the_terminal() {
        let mut table = Table::new(&[column("ID", false, None), column("OBJECT", false, Some(8))]);
        table.row(vec![Cell::new("0123456789"), Cell::new("/a/very/long/path/to/file.exe")]);
        let narrow = Screen { colour: false, width: Some(24) };
        assert_eq!(drawn(&table, narrow).lines().last().unwrap(), "0123456789  /a/ver…e.exe");
        let too_narrow = Screen { colour: false, width: Some(5) };
        assert_eq!(drawn(&table, too_narrow).lines().last().unwrap(), "0123456789  /a/v…exe");
    }

    #[test]
    fn a_narrow_terminal_loses_the_least_important_columns() {
        let mut columns =
            [column("A", false, None), column("B", true, None), column("C", false, Some(3))];
        columns[0].drops = 1;
        columns[1].drops = 2;
        let mut table = Table::new(&columns);
        table.row(vec![Cell::new("aaaa"), Cell::new("bbbb"), Cell::new("cccccc")]);
        let line = |width| {
            let text = drawn(&table, Screen { colour: false, width: Some(width) });
            text.lines().last().unwrap().to_owned()
        };
        assert_eq!(line(18), "aaaa  bbbb  cccccc");
        assert_eq!(line(15), "aaaa  bbbb  c…c");
        assert_eq!(line(14), "aaaa  cccccc", "and the others take its room");
        assert_eq!(line(5), "cc…cc");
        assert_eq!(line(1), "c…c", "never all of them");
    }

    #[test]
    fn rows_to_come_get_the_room_that_is_left() {
        let columns = [
            column("ID", false, None),
            column("USER", false, Some(4)),
            column("OBJECT", false, Some(8)),
        ];
        let table = Table::new(&columns);
        let screen = Screen { colour: false, width: Some(40) };
        assert_eq!(table.widths_to_fill(screen), [2, 16, 18]);
        assert_eq!(table.widths_to_fill(PLAIN), [2, 4, 6]);
        let row = [Cell::new("1"), Cell::new("a user with a long name"), Cell::new("x")];
        let mut out = Vec::new();
        table.line(&mut out, &row, &[2, 4, 6], PLAIN).unwrap();
        assert_eq!(out, b"1   a user with a long name  x\n");
    }

    #[test]
    fn nothing_from_the_wire_steers_the_terminal_and_colours_do_not_count() {
        let mut table = Table::new(&[column("A", false, None), column("B", false, None)]);
        table.row(vec![Cell::new("\x1b[2J").colour(Colour::Red), Cell::new("b")]);
        let screen = Screen { colour: true, width: None };
        let text = drawn(&table, screen);
        assert!(text.contains("\x1b[1;31m\\x1b[2J\x1b[0m  b"), "{text:?}");
        assert!(text.starts_with("\x1b[1mA\x1b[0m        \x1b[1mB\x1b[0m\n"), "{text:?}");
    }

    #[test]
    fn numbers_for_people() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0K"),
            (1024, "1.0K"),
            (10_188, "9.9K"),
            (10_189, "10K"),
            (1 << 20, "1.0M"),
            (1023 << 10, "1.0M"),
            (5_000_000_000, "4.7G"),
            (u64::MAX, "16E"),
        ] {
            assert_eq!(bytes(n), text, "{n}");
        }
        for (s, text) in [
            (0.04, "40ms"),
            (9.96, "10.0s"),
            (12.9, "12s"),
            (184.0, "3m04s"),
            (7980.0, "2h13m"),
            (439_200.0, "5d02h"),
            (-1.0, "0ms"),
            (1.23, "1.2s"),
        ] {
            assert_eq!(age(s), text, "{s}");
        }
    }
}
