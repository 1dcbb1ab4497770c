//! The name that somebody who mistyped one most likely meant.

/// The candidate nearest to `name`, if any is near enough to be worth suggesting.
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (distance(&fold(name), &fold(candidate)), candidate))
        .min()
        .filter(|(edits, candidate)| *edits <= 2.max(candidate.len() / 3))
        .map(|(_, candidate)| candidate)
}

/// `; did you mean 'x'?`, or nothing.
#[must_use]
pub fn hint<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map_or_else(String::new, |n| format!("; did you mean '{n}'?"))
}

/// Names that differ by case or by `-` and `_` only are the same to people.
fn fold(name: &str) -> Vec<char> {
    name.chars()
        .map(|c| {
            if c == '-' {
                '_'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect()
}

/// Levenshtein distance.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_likely_name() {
        let keys = ["flow_cells", "pod_cidr", "listen"];
        assert_eq!(nearest("flowcells", keys), Some("flow_cells"));
        assert_eq!(nearest("pod-cidr", keys), Some("pod_cidr"));
        assert_eq!(nearest("LISTEN", keys), Some("listen"));
        assert_eq!(nearest("eht0", ["eth0", "cbr0"]), Some("eth0"));
    }

    #[test]
    fn says_nothing_rather_than_nonsense() {
        assert_eq!(nearest("colour", ["flow_cells", "listen"]), None);
        assert_eq!(hint("colour", ["flow_cells"]), "");
    }
}
