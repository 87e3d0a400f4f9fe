//! Patterns with `*` and `?` for names: of detections, files, users, addresses.

use std::fmt;

/// Whether letters of the other case match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// They do.
    Either,
    /// They do not.
    Exact,
}

/// A pattern: `*` stands for any characters, `?` for one, the rest for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob {
    source: String,
    case: Case,
    pattern: Vec<char>,
}

impl Glob {
    /// A pattern whose letters match either case. Every string is one.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self::with(pattern, Case::Either)
    }

    /// A pattern with this rule for letters.
    #[must_use]
    pub fn with(pattern: &str, case: Case) -> Self {
        Self { source: pattern.to_owned(), case, pattern: case.characters(pattern) }
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether the whole of `name` matches. Time grows with the product of both lengths at worst.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (&self.pattern, self.case.characters(name));
        let (mut p, mut n) = (0, 0);
        // the last star and how much of the name it takes: enough, since a later star can take over all that follows
        let mut star: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some('*') => {
                    star = Some((p, n));
                    p += 1;
                }
                Some(c) if *c == '?' || *c == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => match &mut star {
                    Some((at, taken)) => {
                        *taken += 1;
                        p = *at + 1;
                        n = *taken;
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|c| *c == '*')
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.source)
    }
}

impl Case {
    fn characters(self, text: &str) -> Vec<char> {
        match self {
            Self::Either => text.chars().flat_map(char::to_lowercase).collect(),
            Self::Exact => text.chars().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Case, Glob};
    use proptest::prelude::*;

    #[test]
    fn stars_and_marks() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("EICAR*", "eicar_test_file", true),
            ("EICAR", "EICAR_Test_File", false),
            ("*_File", "EICAR_Test_File", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-", false),
            ("?", "", false),
            ("?x", "äx", true),
            ("*.*.exe", "a.exe", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), expected, "{pattern} on {name}");
        }
    }

    #[test]
    fn letters_match_as_the_case_says() {
        assert!(Glob::with("Win.*", Case::Either).matches("WIN.Test"));
        assert!(!Glob::with("Win.*", Case::Exact).matches("WIN.Test"));
        assert!(Glob::with("Win.*", Case::Exact).matches("Win.Test"));
    }

    /// The definition, exponential and obviously right.
    fn naive(p: &[char], n: &[char]) -> bool {
        match (p.first(), n.first()) {
            (None, None) => true,
            (Some('*'), _) => naive(&p[1..], n) || (!n.is_empty() && naive(p, &n[1..])),
            (Some('?'), Some(_)) => naive(&p[1..], &n[1..]),
            (Some(a), Some(b)) => a == b && naive(&p[1..], &n[1..]),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab*?]{0,8}", name in "[ab]{0,10}") {
            let p: Vec<char> = pattern.chars().collect();
            let n: Vec<char> = name.chars().collect();
            prop_assert_eq!(Glob::new(&pattern).matches(&name), naive(&p, &n));
        }
    }
}
