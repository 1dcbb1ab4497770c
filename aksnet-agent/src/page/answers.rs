//! The *answers* to questions that were asked since the last sweep: another browser that asks the same gets the same, and
//! costs the agent nothing.

use axum::body::Bytes;

/// All that is kept weighs no more than this, in bytes; zipped, 5,000 flows are some hundred thousand.
const WEIGHT: usize = 4 << 20;

/// What is kept.
#[derive(Default)]
pub(super) struct Answers {
    /// The sweep that they are of.
    sweep: u64,
    /// The oldest first.
    kept: Vec<(String, Bytes)>,
}

impl Answers {
    /// The answer to a question, if it was asked since this sweep. Those of sweeps before are forgotten.
    pub(super) fn get(&mut self, sweep: u64, question: &str) -> Option<Bytes> {
        if self.sweep != sweep {
            self.sweep = sweep;
            self.kept.clear();
        }
        let found = self.kept.iter().find(|(asked, _)| asked == question);
        found.map(|(_, answer)| answer.clone())
    }

    /// Keeps an answer, in place of the oldest where there is no room.
    pub(super) fn keep(&mut self, question: String, answer: Bytes) {
        let weighs = |question: &String, answer: &Bytes| question.len() + answer.len();
        let kept = self.kept.iter().map(|(q, a)| weighs(q, a));
        let mut sum = weighs(&question, &answer) + kept.sum::<usize>();
        while sum > WEIGHT && !self.kept.is_empty() {
            let (question, answer) = self.kept.remove(0);
            sum -= weighs(&question, &answer);
        }
        if sum <= WEIGHT {
            self.kept.push((question, answer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weighing(n: usize) -> Bytes {
        Bytes::from(vec![0; n])
    }

    #[test]
    fn an_answer_is_good_until_the_next_sweep() {
        let mut answers = Answers::default();
        assert_eq!(answers.get(1, "a"), None);
        answers.keep("a".to_owned(), weighing(3));
        assert_eq!(answers.get(1, "a"), Some(weighing(3)));
        assert_eq!(answers.get(1, "b"), None);
        assert_eq!(answers.get(2, "a"), None);
        assert_eq!(answers.get(1, "a"), None, "and does not come back");
    }

    #[test]
    fn the_oldest_give_way_and_what_is_too_large_is_not_kept() {
        let mut answers = Answers::default();
        answers.get(1, "");
        answers.keep("a".to_owned(), weighing(WEIGHT / 2 - 1));
        answers.keep("b".to_owned(), weighing(WEIGHT / 2 - 1));
        answers.keep("c".to_owned(), weighing(1));
        assert_eq!(answers.get(1, "a"), None);
        assert!(answers.get(1, "b").is_some() && answers.get(1, "c").is_some());
        answers.keep("d".to_owned(), weighing(WEIGHT + 1));
        assert_eq!(answers.get(1, "d"), None);
        // A long question weighs, too.
        let long = "e".repeat(WEIGHT);
        answers.keep(long.clone(), weighing(1));
        assert_eq!(answers.get(1, &long), None);
    }
}
