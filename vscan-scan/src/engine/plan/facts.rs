//! What formulas are asked of beside literals: the bytes of the object, what rules call it, and what its imports are.

use super::program::{Imphash, imphash, may_export};
use crate::engine::needle::{How, Needle};
use crate::sniff::Kind;
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;

/// What is known of an object before any rule runs.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(super) data: &'a [u8],
    /// None: it may be called anything.
    names: Option<&'a Names<'a>>,
    imphash: OnceCell<Imphash>,
    /// What takes long is taken for wrong.
    at_once: bool,
}

/// The values of the variables that rules may ask for.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    /// `filename`.
    pub(crate) filename: &'a str,
    /// `filepath`.
    pub(crate) filepath: String,
    /// `extension`: the ending with its dot in lower case, as the public rule sets expect it.
    pub(crate) extension: String,
    /// `filetype`.
    pub(crate) filetype: String,
}

/// A variable of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Variable {
    Filename,
    Filepath,
    Extension,
    Filetype,
    Owner,
}

/// Where in the value of a variable a text has to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Place {
    /// It is the whole value.
    Whole,
    Start,
    End,
    Anywhere,
}

/// The value of a variable has one of the texts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Text {
    pub(crate) variable: Variable,
    pub(crate) place: Place,
    pub(crate) texts: Vec<Needle>,
}

impl<'a> Names<'a> {
    /// Of a part with this name, in these containers.
    pub(crate) fn new(filename: &'a str, path: &[String], kind: Kind) -> Self {
        Self {
            filename,
            filepath: path.join("/"),
            extension: extension(filename),
            filetype: kind.label().to_ascii_uppercase(),
        }
    }

    /// The variables that differ from one object to the next, with their values; the others are empty.
    pub(crate) fn variables(&self) -> [(&'static str, &str); 4] {
        [
            ("filename", self.filename),
            ("filepath", &self.filepath),
            ("extension", &self.extension),
            ("filetype", &self.filetype),
        ]
    }

    fn value(&self, variable: Variable) -> &str {
        match variable {
            Variable::Filename => self.filename,
            Variable::Filepath => &self.filepath,
            Variable::Extension => &self.extension,
            Variable::Filetype => &self.filetype,
            Variable::Owner => "",
        }
    }
}

/// The ending with its dot in lower case, `.exe`; else empty.
fn extension(name: &str) -> String {
    let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
    match name.rfind('.') {
        Some(dot) if dot > 0 => name[dot..].to_ascii_lowercase(),
        _ => String::new(),
    }
}

impl Variable {
    /// The variable that rules call this.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "filename" => Variable::Filename,
            "filepath" => Variable::Filepath,
            "extension" => Variable::Extension,
            "filetype" => Variable::Filetype,
            "owner" => Variable::Owner,
            _ => return None,
        })
    }
}

impl<'a> Facts<'a> {
    pub(crate) fn new(data: &'a [u8], names: &'a Names<'a>) -> Self {
        Self { data, names: Some(names), imphash: OnceCell::new(), at_once: false }
    }

    /// The same, without what takes long to find out: that is taken for wrong.
    pub(super) fn at_once(&self) -> Self {
        Self { data: self.data, names: self.names, imphash: OnceCell::new(), at_once: true }
    }

    /// Of data that may be called anything.
    pub(crate) fn unnamed(data: &'a [u8]) -> Self {
        Self { data, names: None, imphash: OnceCell::new(), at_once: false }
    }

    /// Whether the program may export this name.
    pub(super) fn may_export(&self, name: &str) -> bool {
        !self.at_once && may_export(self.data, name.as_bytes())
    }

    pub(super) fn may_be(&self, text: &Text) -> bool {
        let Some(names) = self.names else { return true };
        let value = names.value(text.variable).as_bytes();
        text.texts.iter().any(|needle| has(value, needle, text.place))
    }

    /// Whether the program's imports may have this hash: they have another one only where that is certain.
    pub(super) fn may_have_imports(&self, hash: &str) -> bool {
        if self.at_once {
            return false;
        }
        match self.imphash.get_or_init(|| imphash(self.data)) {
            Imphash::Is(known) => known == hash,
            Imphash::None => false,
            Imphash::Unknown => true,
        }
    }
}

fn has(value: &[u8], needle: &Needle, place: Place) -> bool {
    let equal = |there: &[u8]| match needle.how {
        How::Exact => there == needle.bytes,
        How::Nocase => there.eq_ignore_ascii_case(&needle.bytes),
        How::Xor(..) => true,
    };
    // Some other letters are lower case of ASCII ones to yara-x: the Kelvin sign's is k.
    if needle.how == How::Nocase && !value.is_ascii() {
        return true;
    }
    let len = needle.bytes.len();
    match place {
        Place::Whole => equal(value),
        Place::Start => value.get(..len).is_some_and(equal),
        Place::End => value.len().checked_sub(len).is_some_and(|at| equal(&value[at..])),
        Place::Anywhere => len == 0 || value.windows(len).any(equal),
    }
}
