//! The *waiting*: cells whose flow has an end that nobody could name yet. Each stands in the queue once, whatever its flow
//! is by the time that its turn comes: cells are taken by other flows faster than all can be asked for.

use std::collections::VecDeque;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    queue: VecDeque<u32>,
    /// By cell: whether it stands there.
    stands: Vec<bool>,
}

impl Waiting {
    /// Puts a cell at the end, if it does not stand in the queue already.
    pub(super) fn push(&mut self, cell: u32) {
        let at = cell as usize;
        if self.stands.len() <= at {
            self.stands.resize(at + 1, false);
        }
        if !std::mem::replace(&mut self.stands[at], true) {
            self.queue.push_back(cell);
        }
    }

    /// Takes those that have waited longest, so many at the most.
    pub(super) fn take(&mut self, most: usize) -> Vec<u32> {
        let taken: Vec<u32> = self.queue.drain(..most.min(self.queue.len())).collect();
        for &cell in &taken {
            self.stands[cell as usize] = false;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_stands_in_the_queue_once_however_often_it_is_taken() {
        let mut waiting = Waiting::default();
        for flow in 0..100_000 {
            waiting.push(flow % 10);
        }
        assert_eq!(waiting.take(4), [0, 1, 2, 3]);
        // Who was asked for and has no name goes to the end.
        waiting.push(2);
        assert_eq!(waiting.take(100), [4, 5, 6, 7, 8, 9, 2]);
        assert!(waiting.take(1).is_empty());
    }
}
