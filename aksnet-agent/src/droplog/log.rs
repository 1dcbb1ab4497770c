//! The log itself: the latest records, and those who follow it, each at their own pace. Nobody slows a sweep down: who
//! falls behind is told how many records they missed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast::{self, error::RecvError};

use super::record::DropRecord;

/// How many records are kept for those who come later.
const KEPT: usize = 1_024;
/// How many a follower may be behind.
const BEHIND: usize = 4_096;

/// See the module's header.
#[derive(Debug)]
pub struct DropLog {
    kept: Mutex<VecDeque<Arc<DropRecord>>>,
    sender: broadcast::Sender<Arc<DropRecord>>,
}

impl Default for DropLog {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            sender: broadcast::Sender::new(BEHIND),
        }
    }
}

/// What a follower hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A record.
    Record(Arc<DropRecord>),
    /// So many records came faster than they were read.
    Missed(u64),
}

/// Somebody who follows the log.
#[derive(Debug)]
pub struct Following {
    kept: VecDeque<Arc<DropRecord>>,
    receiver: broadcast::Receiver<Arc<DropRecord>>,
}

impl DropLog {
    /// Adds records, oldest first.
    pub fn publish(&self, records: impl IntoIterator<Item = DropRecord>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            let record = Arc::new(record);
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(Arc::clone(&record));
            // An error says that nobody follows.
            let _nobody = self.sender.send(record);
        }
    }

    /// What is kept, the oldest first.
    #[must_use]
    pub fn kept(&self) -> Vec<Arc<DropRecord>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }

    /// Follows the log from now on, or first with the records that are kept.
    #[must_use]
    pub fn follow(&self, recent: bool) -> Following {
        // The lock is held, so that no record is heard twice or not at all.
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        Following {
            receiver: self.sender.subscribe(),
            kept: if recent {
                kept.clone()
            } else {
                VecDeque::new()
            },
        }
    }
}

impl Following {
    /// The next; `None` when the log has ended. Can be cancelled without a loss.
    pub async fn next(&mut self) -> Option<News> {
        if let Some(record) = self.kept.pop_front() {
            return Some(News::Record(record));
        }
        match self.receiver.recv().await {
            Ok(record) => Some(News::Record(record)),
            Err(RecvError::Lagged(missed)) => Some(News::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(n: u64) -> DropRecord {
        DropRecord {
            packets: n,
            ..super::super::record::tests::record()
        }
    }

    async fn packets(following: &mut Following) -> u64 {
        match following.next().await {
            Some(News::Record(record)) => record.packets,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn who_comes_later_hears_the_latest_if_asked_for() {
        let log = DropLog::default();
        log.publish((0..KEPT as u64 + 5).map(numbered));
        let mut recent = log.follow(true);
        let mut from_now = log.follow(false);
        log.publish([numbered(9_999)]);
        assert_eq!(packets(&mut recent).await, 5);
        for _ in 1..KEPT {
            packets(&mut recent).await;
        }
        assert_eq!(packets(&mut recent).await, 9_999);
        assert_eq!(packets(&mut from_now).await, 9_999);
        drop(log);
        assert_eq!(from_now.next().await, None);
    }

    #[tokio::test]
    async fn who_is_slow_is_told_how_much_was_missed() {
        let log = DropLog::default();
        let mut following = log.follow(false);
        log.publish((0..BEHIND as u64 + 7).map(numbered));
        assert_eq!(following.next().await, Some(News::Missed(7)));
        assert_eq!(packets(&mut following).await, 7);
    }
}
