//! Names of the kernel's functions for any address. The agent keeps only those names that tell a drop's cause; all
//! 200,000 would cost 10 MB. The others are looked up when a drop happens at a place that is not known yet, all such
//! places in one reading, and kept.

use std::{
    collections::HashMap,
    rc::Rc,
    sync::{Mutex, PoisonError},
};

/// How many places are kept: a kernel drops packets at some hundreds.
const KEPT: usize = 4_096;

/// Looks places up, by a reading of the kernel's list of functions.
#[derive(Debug, Default)]
pub struct Places {
    known: Mutex<HashMap<u64, Box<str>>>,
}

impl Places {
    /// The function around each address: `symbols` gives all functions by start address, in any order, and is called
    /// only if one of the addresses is new. An address without a name reads `0x…`.
    pub fn names<I: Iterator<Item = (u64, String)>>(
        &self,
        addresses: &[u64],
        symbols: impl FnOnce() -> I,
    ) -> Vec<Box<str>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() > KEPT {
            known.clear();
        }
        let mut new: Vec<u64> = addresses
            .iter()
            .copied()
            .filter(|address| !known.contains_key(address))
            .collect();
        if !new.is_empty() {
            new.sort_unstable();
            new.dedup();
            // The nearest function at or below each; kallsyms also lists modules, in no order.
            let mut nearest: Vec<(u64, Option<Rc<str>>)> = vec![(0, None); new.len()];
            for (start, name) in symbols() {
                // Addresses from the start on lie in it, unless a later function begins in between.
                let from = new.partition_point(|address| *address < start);
                // kallsyms ascends: each is the best so far of all addresses above it.
                let name: Rc<str> = name.into();
                for best in &mut nearest[from..] {
                    if start >= best.0 {
                        *best = (start, Some(Rc::clone(&name)));
                    } else {
                        break;
                    }
                }
            }
            for (address, (_, name)) in new.iter().zip(nearest) {
                let name =
                    name.map_or_else(|| format!("{address:#x}").into(), |name| (*name).into());
                known.insert(*address, name);
            }
        }
        let name = |address: &u64| known.get(address).cloned().unwrap_or_default();
        addresses.iter().map(name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_the_name_of_the_function_around_it() {
        let places = Places::default();
        let symbols = || {
            [(0x3000, "c"), (0x1000, "a"), (0x2000, "b")]
                .map(|(start, name): (u64, &str)| (start, name.to_owned()))
                .into_iter()
        };
        let asked = [0x2010, 0x1000, 0x0fff, 0x9000, 0x2fff];
        let names = places.names(&asked, symbols);
        let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        assert_eq!(names, ["b", "a", "0xfff", "c", "b"]);
        // Known by now: nothing is read again.
        let again = places.names(&asked, || -> std::iter::Empty<(u64, String)> {
            panic!("read again")
        });
        assert_eq!(again.len(), 5);
    }
}
