//! `[types]`: what is refused for its type or name. What matches is `crate::policy::types`' business.

use super::read::{Reader, Scalar, Table, Wrong, kind};
use std::fmt;
use toml::de::DeValue;
use vscan_scan::formats::{self, Class};
use vscan_scan::glob::Glob;

/// `[types]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Types {
    /// What is a detection by itself.
    pub forbid: Vec<Forbidden>,
}

/// Something that is forbidden.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// All formats of a class, by their bytes or the name's extension.
    Class(Class),
    /// A format or an extension, in lower case.
    Word(String),
    /// Names.
    Name(Glob),
    /// What runs, behind the extension of something that is only looked at.
    DoubleExtension,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Class(class) => f.pad(class.as_str()),
            Self::Word(word) => f.pad(word),
            Self::Name(glob) => glob.fmt(f),
            Self::DoubleExtension => f.pad("double-extension"),
        }
    }
}

impl Scalar for Forbidden {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let help = || {
            let classes: Vec<_> = Class::ALL.iter().map(|class| class.as_str()).collect();
            format!(
                "write a class ({}), an extension such as \"exe\", a pattern such as \"*.pdf.exe\", or \
                 \"double-extension\"",
                classes.join(", ")
            )
        };
        let Some(text) = value.as_str() else {
            return Err(
                Wrong::new(format!("must be a string, this is {}", kind(value))).help(help())
            );
        };
        if text == "double-extension" {
            return Ok(Self::DoubleExtension);
        }
        if let Some(class) = Class::ALL.iter().find(|class| class.as_str() == text) {
            return Ok(Self::Class(*class));
        }
        if text.contains(['*', '?', '.']) {
            return Ok(Self::Name(Glob::new(text)));
        }
        if text.is_empty() || text.contains(['/', ' ']) {
            return Err(Wrong::new(format!("{text:?} is no type and no name")).help(help()));
        }
        Ok(Self::Word(text.to_lowercase()))
    }
}

/// A type that is not scanned: the name of a format or a class, `text` or `data`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SkippedType(pub(super) String);

impl Scalar for SkippedType {
    fn read(value: &DeValue<'_>) -> Result<Self, Wrong> {
        let help = "write a class such as \"image\" or \"video\", or a format such as \"png\", \"mp4\" or \"iso9660\"";
        let Some(text) = value.as_str() else {
            return Err(Wrong::new(format!("must be a string, this is {}", kind(value))).help(help));
        };
        if Class::ALL.iter().any(|class| class.as_str() == text) || formats::by_name(text).is_some()
        {
            return Ok(Self(text.to_owned()));
        }
        Err(Wrong::new(format!("{text:?} is no type that its first bytes tell")).help(help))
    }
}

pub(super) fn read(r: &mut Reader<'_>, root: &mut Table<'_, '_>) -> Types {
    let mut t = root.table(r, "types");
    let types = Types { forbid: t.list(r, "forbid", Vec::new()) };
    t.finish(r);
    types
}
