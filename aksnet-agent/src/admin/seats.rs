//! The *seats*: one for each connection that is open, so many and no more.
//!
//! Where all are taken, whoever has said nothing for longest has to go, then whoever has been reading its answer for
//! longest: neither of them can keep a probe or a scrape out by holding connections open.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has not said yet what it wants: a handshake, or the head of a request.
    Asking,
    /// Its answer is being made.
    Working,
    /// It reads its answer, since then.
    Reading(Instant),
}

#[derive(Debug)]
struct Row {
    phase: Phase,
    leave: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Rows {
    next: u64,
    taken: BTreeMap<u64, Row>,
}

/// All of a server's.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    rows: Mutex<Rows>,
    freed: Notify,
}

impl Seats {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            rows: Mutex::default(),
            freed: Notify::new(),
        })
    }

    fn rows(&self) -> MutexGuard<'_, Rows> {
        // What a panicking task left is whole: entries are put in and taken out, and no more.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat; somebody else's if there is no other. Waits where everybody's answer is being made.
    pub(super) async fn take(self: &Arc<Self>) -> Seat {
        loop {
            let freed = self.freed.notified();
            if let Some(seat) = self.try_take() {
                return seat;
            }
            freed.await;
        }
    }

    fn try_take(self: &Arc<Self>) -> Option<Seat> {
        let mut rows = self.rows();
        if rows.taken.len() >= self.most {
            let who = rows.whoever_can_go()?;
            rows.send_away(who);
        }
        let number = rows.next;
        rows.next += 1;
        let leave = Arc::new(Notify::new());
        let row = Row {
            phase: Phase::Asking,
            leave: leave.clone(),
        };
        rows.taken.insert(number, row);
        Some(Seat {
            seats: self.clone(),
            number,
            leave,
        })
    }

    /// Sends away who has been reading its answer for longest, if that is longer than this.
    pub(super) fn hurry(&self, longer: Duration) {
        let mut rows = self.rows();
        if let Some((number, since)) = rows.slowest()
            && since.elapsed() > longer
        {
            rows.send_away(number);
        }
    }

    #[cfg(test)]
    fn taken(&self) -> usize {
        self.rows().taken.len()
    }
}

impl Rows {
    fn slowest(&self) -> Option<(u64, Instant)> {
        let reading = self
            .taken
            .iter()
            .filter_map(|(number, row)| match row.phase {
                Phase::Reading(since) => Some((*number, since)),
                _ => None,
            });
        reading.min_by_key(|(_, since)| *since)
    }

    fn whoever_can_go(&self) -> Option<u64> {
        let mut silent = self
            .taken
            .iter()
            .filter(|(_, row)| row.phase == Phase::Asking);
        let silent = silent.next().map(|(number, _)| *number);
        silent.or_else(|| self.slowest().map(|(number, _)| number))
    }

    fn send_away(&mut self, number: u64) {
        if let Some(row) = self.taken.remove(&number) {
            row.leave.notify_one();
        }
    }
}

/// One connection's; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    number: u64,
    leave: Arc<Notify>,
}

impl Seat {
    /// The connection is at something else now.
    pub(super) fn at(&self, phase: Phase) {
        if let Some(row) = self.seats.rows().taken.get_mut(&self.number) {
            row.phase = phase;
        }
    }

    /// Somebody else needs it.
    pub(super) async fn taken_away(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.rows().taken.remove(&self.number);
        self.seats.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn whoever_says_nothing_goes_first_then_the_slowest_reader_and_nobody_who_waits_for_us() {
        let seats = Seats::new(3);
        let (working, silent, reading) =
            (seats.take().await, seats.take().await, seats.take().await);
        working.at(Phase::Working);
        reading.at(Phase::Reading(Instant::now()));
        let fourth = seats.take().await;
        assert!(silent.taken_away().now_or_never().is_some());
        fourth.at(Phase::Working);
        let fifth = seats.take().await;
        assert!(reading.taken_away().now_or_never().is_some());
        fifth.at(Phase::Working);
        assert_eq!(seats.taken(), 3);
        assert!(seats.take().now_or_never().is_none(), "all are at work");
        assert!(working.taken_away().now_or_never().is_none());
        // Those that were sent away have no seat to give back.
        drop((silent, reading));
        assert_eq!(seats.taken(), 3);
        drop(working);
        assert!(seats.take().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_reader_is_hurried_only_when_it_is_slow() {
        let seats = Seats::new(3);
        let seat = seats.take().await;
        seats.hurry(Duration::ZERO);
        assert!(
            seat.taken_away().now_or_never().is_none(),
            "it does not read"
        );
        seat.at(Phase::Reading(Instant::now()));
        seats.hurry(Duration::from_hours(1));
        assert!(seat.taken_away().now_or_never().is_none());
        seats.hurry(Duration::ZERO);
        assert!(seat.taken_away().now_or_never().is_some());
    }
}
