//! Walks a parsed TOML document and collects everything that is wrong on the way.
//!
//! What the keys mean stands in `sections`, what the values look like in `value`.

use super::error::{Problem, problem};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A value as it stands in the file.
pub(super) type Raw<'i> = Spanned<DeValue<'i>>;

/// What is wrong with one value, and what to do.
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl Wrong {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// A type that is written as one TOML value.
pub(super) trait Scalar: Sized {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong>;
}

/// The document and what was found wrong with it.
pub(super) struct Reader<'s> {
    source: &'s str,
    problems: Vec<(usize, Problem)>,
}

impl<'s> Reader<'s> {
    pub(super) fn new(source: &'s str) -> Self {
        Self { source, problems: Vec::new() }
    }

    pub(super) fn report(&mut self, span: Range<usize>, wrong: Wrong) {
        let at = span.start;
        self.problems.push((at, problem(self.source, Some(span), wrong.message, wrong.help)));
    }

    pub(super) fn report_document(&mut self, message: impl Into<String>, help: impl Into<String>) {
        let problem = problem(self.source, None, message, Some(help.into()));
        self.problems.push((usize::MAX, problem));
    }

    /// Everything found, in the order of the file.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|(at, _)| *at);
        self.problems.into_iter().map(|(_, p)| p).collect()
    }
}

/// A table of the document; knows which keys were asked for.
pub(super) struct Table<'a, 'i> {
    path: String,
    map: Option<&'a DeTable<'i>>,
    span: Range<usize>,
    known: Vec<&'static str>,
}

impl<'a, 'i> Table<'a, 'i> {
    pub(super) fn new(
        path: impl Into<String>,
        map: Option<&'a DeTable<'i>>,
        span: Range<usize>,
    ) -> Self {
        Self { path: path.into(), map, span, known: Vec::new() }
    }

    /// The key's full name, for messages.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Where the table stands.
    pub(super) fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Where the key's value stands, or else the table.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.find(key).map_or_else(|| self.span(), Spanned::span)
    }

    /// Where a key of a table inside this one stands, or else that table, or this one.
    pub(super) fn table_span(&self, table: &str, key: &str) -> Range<usize> {
        let Some(inner) = self.find(table) else { return self.span() };
        let map = inner.get_ref().as_table();
        Table::new(table, map, inner.span()).span_of(key)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    fn find(&self, key: &str) -> Option<&'a Raw<'i>> {
        self.map?.iter().find(|(k, _)| k.get_ref().as_ref() == key).map(|(_, v)| v)
    }

    /// The raw value, and the key becomes a known one.
    pub(super) fn raw(&mut self, key: &'static str) -> Option<&'a Raw<'i>> {
        self.known.push(key);
        self.find(key)
    }

    /// The value, if the key is there and right.
    pub(super) fn opt<T: Scalar>(&mut self, r: &mut Reader<'_>, key: &'static str) -> Option<T> {
        let raw = self.raw(key)?;
        scalar(r, &self.name(key), raw)
    }

    /// The value, or the default.
    pub(super) fn get<T: Scalar>(
        &mut self,
        r: &mut Reader<'_>,
        key: &'static str,
        default: T,
    ) -> T {
        self.opt(r, key).unwrap_or(default)
    }

    /// An array of values, if the key is there; wrong elements are reported and left out.
    pub(super) fn opt_list<T: Scalar>(
        &mut self,
        r: &mut Reader<'_>,
        key: &'static str,
    ) -> Option<Vec<T>> {
        let raw = self.raw(key)?;
        let name = self.name(key);
        let Some(array) = raw.get_ref().as_array() else {
            let wrong =
                Wrong::new(format!("`{name}` must be an array, this is {}", kind(raw.get_ref())))
                    .help(format!("write {key} = [...], with brackets also around a single value"));
            r.report(raw.span(), wrong);
            return None;
        };
        Some(
            array
                .iter()
                .enumerate()
                .filter_map(|(n, v)| scalar(r, &format!("{name}[{n}]"), v))
                .collect(),
        )
    }

    /// An array of values, or the default.
    pub(super) fn list<T: Scalar>(
        &mut self,
        r: &mut Reader<'_>,
        key: &'static str,
        default: Vec<T>,
    ) -> Vec<T> {
        self.opt_list(r, key).unwrap_or(default)
    }

    /// A value or an array of values; empty when absent.
    pub(super) fn one_or_more<T: Scalar>(
        &mut self,
        r: &mut Reader<'_>,
        key: &'static str,
    ) -> Vec<T> {
        match self.find(key).map(Spanned::get_ref) {
            Some(DeValue::Array(_)) => self.list(r, key, Vec::new()),
            _ => self.opt(r, key).into_iter().collect(),
        }
    }

    /// A table inside this one; an absent one is empty.
    pub(super) fn table(&mut self, r: &mut Reader<'_>, key: &'static str) -> Table<'a, 'i> {
        let name = self.name(key);
        match self.raw(key) {
            None => Table::new(name, None, self.span()),
            Some(raw) => match raw.get_ref() {
                DeValue::Table(map) => Table::new(name, Some(map), raw.span()),
                other => {
                    let wrong =
                        Wrong::new(format!("`{name}` must be a table, this is {}", kind(other)))
                            .help(format!(
                                "write [{name}] on a line of its own and its keys below"
                            ));
                    r.report(raw.span(), wrong);
                    Table::new(name, None, self.span())
                }
            },
        }
    }

    /// An array of tables, `[[key]]`; empty when absent.
    pub(super) fn tables(&mut self, r: &mut Reader<'_>, key: &'static str) -> Vec<Table<'a, 'i>> {
        let name = self.name(key);
        let Some(raw) = self.raw(key) else { return Vec::new() };
        let mut tables = Vec::new();
        let Some(array) = raw.get_ref().as_array() else {
            let wrong = Wrong::new(format!(
                "`{name}` must be a list of tables, this is {}",
                kind(raw.get_ref())
            ))
            .help(format!("write [[{name}]], with two brackets on each side"));
            r.report(raw.span(), wrong);
            return tables;
        };
        for (n, element) in array.iter().enumerate() {
            let name = format!("{name}[{n}]");
            match element.get_ref() {
                DeValue::Table(map) => tables.push(Table::new(name, Some(map), element.span())),
                other => {
                    let wrong =
                        Wrong::new(format!("`{name}` must be a table, this is {}", kind(other)));
                    r.report(element.span(), wrong);
                }
            }
        }
        tables
    }

    /// The tables inside a table of this one, `[key.NAME]`, each with its name; empty when absent.
    pub(super) fn subtables(
        &mut self,
        r: &mut Reader<'_>,
        key: &'static str,
    ) -> Vec<(String, Table<'a, 'i>)> {
        let outer = self.table(r, key);
        let Some(map) = outer.map else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, value) in map {
            let name = name.get_ref().to_string();
            let path = outer.name(&name);
            match value.get_ref() {
                DeValue::Table(map) => {
                    tables.push((name, Table::new(path, Some(map), value.span())));
                }
                other => {
                    let wrong =
                        Wrong::new(format!("`{path}` must be a table, this is {}", kind(other)))
                            .help(format!("write [{key}.NAME] on a line of its own"));
                    r.report(value.span(), wrong);
                }
            }
        }
        tables
    }

    /// Reports the keys that nobody asked for.
    pub(super) fn finish(self, r: &mut Reader<'_>) {
        let Some(map) = self.map else { return };
        for (key, value) in map {
            let word = key.get_ref().as_ref();
            if self.known.contains(&word) {
                continue;
            }
            let what = if value.get_ref().is_table() { "table" } else { "key" };
            let mut wrong = Wrong::new(format!("unknown {what} `{}`", self.name(word)));
            wrong.help = Some(match nearest(word, &self.known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", self.known.join(", ")),
            });
            r.report(key.span(), wrong);
        }
    }
}

fn scalar<T: Scalar>(r: &mut Reader<'_>, name: &str, raw: &Raw<'_>) -> Option<T> {
    match T::read(raw.get_ref()) {
        Ok(value) => Some(value),
        Err(mut wrong) => {
            wrong.message = format!("`{name}`: {}", wrong.message);
            r.report(raw.span(), wrong);
            None
        }
    }
}

/// What a TOML value is, with its article.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The known word that `word` was probably meant to be: the closest within two edits and a third of its length.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let limit = (word.len() / 3).clamp(1, 2);
    // no known word has as many letters, and the table grows with their number
    if word.len() > 40 {
        return None;
    }
    known
        .iter()
        .map(|k| (distance(word, k), *k))
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, k)| k)
}

/// Edits from one word to the other (insert, delete, replace, swap two neighbours), in bytes; both words are short.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}
