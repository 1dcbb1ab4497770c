//! An interface name, or a glob that stands for many: `veth*`, `azv*`, `eth?`.

use std::fmt;

/// What `--pod-interface` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// `IFNAMSIZ` less the final NUL.
const NAME_MAX: usize = 15;

impl Pattern {
    /// Checks and takes a name or glob.
    ///
    /// # Errors
    /// When no interface can ever have such a name.
    pub fn new(text: &str) -> Result<Self, String> {
        let literal = text.chars().filter(|c| *c != '*').count();
        if text.is_empty() {
            return Err("an interface name cannot be empty".to_owned());
        }
        if literal > NAME_MAX {
            return Err(format!(
                "'{text}' is longer than the {NAME_MAX} characters of an interface name"
            ));
        }
        // Also keeps matching cheap: every `*` multiplies the ways to try.
        if text.len() > 2 * NAME_MAX {
            return Err(format!(
                "'{text}' has more wildcards than an interface name can need"
            ));
        }
        if text.contains(['/', ' ', ':']) {
            return Err(format!(
                "'{text}' has a character that no interface name has"
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// Whether it can stand for more than one interface.
    #[must_use]
    pub fn is_glob(&self) -> bool {
        self.0.contains(['*', '?'])
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an interface's name fits.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        matches(self.0.as_bytes(), name.as_bytes())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `*` any run, `?` any one byte. Names have 15 bytes, so the plain recursion is enough.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|skip| matches(rest, &name[skip..])),
        Some((b'?', rest)) => name.split_first().is_some_and(|(_, n)| matches(rest, n)),
        Some((c, rest)) => name
            .split_first()
            .is_some_and(|(d, n)| c == d && matches(rest, n)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_a_shell() {
        for (pattern, name, fits) in [
            ("veth*", "veth1a2b", true),
            ("veth*", "eth0", false),
            ("eth?", "eth1", true),
            ("eth?", "eth10", false),
            ("*", "anything", true),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxcyyb", false),
            ("cbr0", "cbr0", true),
            ("cbr0", "cbr01", false),
        ] {
            assert_eq!(
                Pattern::new(pattern).unwrap().matches(name),
                fits,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn impossible_names_are_refused() {
        for text in ["", "a/b", "a b", "sixteen-letters-"] {
            assert!(Pattern::new(text).is_err(), "{text}");
        }
    }
}
