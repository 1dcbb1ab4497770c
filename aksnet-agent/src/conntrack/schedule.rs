//! The *schedule* of dumps: when the mirror is read anew, and why.
//!
//! Wanted dumps are done at once, unless the kernel loses events faster than dumps help: dumps after a loss are at least
//! a second apart, and twice as far each time, up to half a minute, until a periodic dump finds nothing was lost.
//! Times are those since the follower began.

use std::time::Duration;

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Why the mirror is read anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// For the first time on a new connection; not a resync.
    Start,
    /// It is time.
    Periodic,
    /// The kernel had to drop events: the socket was full.
    Overflow,
    /// The last dump was not of one state, or broke off.
    Interrupted,
    /// The connection was lost.
    Lost,
}

impl Reason {
    /// The reasons for which the mirror is read anew, as against read for the first time.
    pub const RESYNCS: [Self; 4] = [
        Self::Periodic,
        Self::Overflow,
        Self::Interrupted,
        Self::Lost,
    ];

    /// The value of the label `reason`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Periodic => "periodic",
            Self::Overflow => "overflow",
            Self::Interrupted => "interrupted",
            Self::Lost => "lost",
        }
    }
}

/// When to dump.
#[derive(Clone, Debug)]
pub struct Schedule {
    interval: Duration,
    wanted: Option<Reason>,
    not_before: Duration,
    periodic: Duration,
    pause: Duration,
}

impl Schedule {
    /// A schedule with a dump each `interval`, and one at once.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self {
            interval,
            wanted: Some(Reason::Start),
            not_before: Duration::ZERO,
            periodic: Duration::ZERO,
            pause: SHORTEST,
        }
    }

    /// Asks for a dump as soon as may be. The first reason stands.
    pub fn want(&mut self, reason: Reason) {
        self.wanted = self.wanted.or(Some(reason));
    }

    /// Why to dump now, if so.
    #[must_use]
    pub fn due(&self, now: Duration) -> Option<Reason> {
        let wanted = self
            .wanted
            .or((now >= self.periodic).then_some(Reason::Periodic));
        wanted.filter(|_| now >= self.not_before)
    }

    /// A dump for this reason is complete.
    pub fn done(&mut self, now: Duration, reason: Reason) {
        self.wanted = None;
        self.periodic = now + self.interval;
        if reason == Reason::Periodic {
            self.pause = SHORTEST;
        }
        self.hold(now, reason);
    }

    /// A dump broke off, for this reason.
    pub fn failed(&mut self, now: Duration, reason: Reason) {
        self.wanted = Some(reason);
        self.hold(now, reason);
    }

    fn hold(&mut self, now: Duration, reason: Reason) {
        if !matches!(reason, Reason::Periodic | Reason::Start) {
            self.not_before = now + self.pause;
            self.pause = (self.pause * 2).min(LONGEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_first_dump_is_at_once_and_the_next_after_the_interval() {
        let mut schedule = Schedule::new(s(15));
        assert_eq!(schedule.due(s(0)), Some(Reason::Start));
        schedule.done(s(0), Reason::Start);
        assert_eq!(schedule.due(s(14)), None);
        assert_eq!(schedule.due(s(15)), Some(Reason::Periodic));
    }

    #[test]
    fn dumps_after_losses_are_ever_further_apart_until_a_quiet_interval() {
        let mut schedule = Schedule::new(s(100));
        schedule.done(s(0), Reason::Start);
        let mut now = s(1);
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            schedule.want(Reason::Overflow);
            assert_eq!(schedule.due(now), Some(Reason::Overflow));
            schedule.done(now, Reason::Overflow);
            schedule.want(Reason::Overflow);
            let early = Duration::from_millis(pause * 1000 - 1);
            assert_eq!(schedule.due(now + early), None);
            now += s(pause);
        }
        schedule.done(now, Reason::Overflow);
        now += s(100);
        assert_eq!(schedule.due(now), Some(Reason::Periodic));
        schedule.done(now, Reason::Periodic);
        schedule.want(Reason::Overflow);
        assert_eq!(
            schedule.due(now),
            Some(Reason::Overflow),
            "no pause is left"
        );
        schedule.done(now, Reason::Overflow);
        schedule.want(Reason::Overflow);
        assert_eq!(schedule.due(now + s(1)), Some(Reason::Overflow));
    }

    #[test]
    fn a_failed_dump_is_tried_again_after_a_pause() {
        let mut schedule = Schedule::new(s(15));
        schedule.failed(s(0), Reason::Lost);
        assert_eq!(schedule.due(Duration::from_millis(500)), None);
        assert_eq!(schedule.due(s(1)), Some(Reason::Lost));
        schedule.failed(s(1), Reason::Lost);
        assert_eq!(schedule.due(s(2)), None);
        assert_eq!(schedule.due(s(3)), Some(Reason::Lost));
    }
}
