//! The log itself: the latest records, and those who follow it, each at their own pace. Nobody slows a sweep down: who
//! falls behind is told how many records they missed.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::record::FlowRecord;

/// How many records are kept for those who come later.
const KEPT: usize = 512;
/// How many a follower may be behind: the records of one sweep, at the most.
pub const BEHIND: usize = 16_384;

/// See the module's header.
#[derive(Debug)]
pub struct FlowLog {
    kept: Mutex<VecDeque<Arc<FlowRecord>>>,
    sender: Mutex<Option<broadcast::Sender<News>>>,
    /// Every follower holds one, also when no more will come.
    followers: Arc<()>,
}

impl Default for FlowLog {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            sender: Mutex::new(Some(broadcast::Sender::new(BEHIND))),
            followers: Arc::new(()),
        }
    }
}

/// What a follower hears.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// A record.
    Record(Arc<FlowRecord>),
    /// So many records came faster than they were read, or more than a sweep makes.
    Missed(u64),
}

/// Somebody who follows the log.
#[derive(Debug)]
pub struct Following {
    receiver: Option<broadcast::Receiver<News>>,
    _follower: Arc<()>,
}

impl FlowLog {
    fn sender(&self) -> Option<broadcast::Sender<News>> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        sender.clone()
    }

    /// Adds records, oldest first, and says how many more there were that nobody made.
    pub fn publish(&self, records: impl IntoIterator<Item = FlowRecord>, missed: u64) {
        let sender = self.sender();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // An error says that nobody follows.
        let say = |news| sender.as_ref().map(|sender| sender.send(news).is_ok());
        for record in records {
            let record = Arc::new(record);
            if kept.len() == KEPT {
                kept.pop_front();
            }
            kept.push_back(Arc::clone(&record));
            say(News::Record(record));
        }
        if missed > 0 {
            say(News::Missed(missed));
        }
    }

    /// How many follow.
    #[must_use]
    pub fn followers(&self) -> usize {
        Arc::strong_count(&self.followers) - 1
    }

    /// The latest records of connections that have ended, oldest first.
    #[must_use]
    pub fn recent(&self) -> Vec<Arc<FlowRecord>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().cloned().collect()
    }

    /// Follows the log from now on.
    #[must_use]
    pub fn follow(&self) -> Following {
        Following {
            receiver: self.sender().map(|sender| sender.subscribe()),
            _follower: self.followers.clone(),
        }
    }

    /// No more will come: followers hear what there is, and then that it has ended.
    pub fn close(&self) {
        let mut sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        *sender = None;
    }
}

impl Following {
    /// The next; `None` when the log has ended. Can be cancelled without a loss.
    pub async fn next(&mut self) -> Option<News> {
        match self.receiver.as_mut()?.recv().await {
            Ok(news) => Some(news),
            Err(RecvError::Lagged(missed)) => Some(News::Missed(missed)),
            Err(RecvError::Closed) => None,
        }
    }

    /// The next, if there is one now.
    pub fn next_now(&mut self) -> Option<News> {
        match self.receiver.as_mut()?.try_recv() {
            Ok(news) => Some(news),
            Err(TryRecvError::Lagged(missed)) => Some(News::Missed(missed)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flowlog::record::tests::record;

    fn numbered(connections: u64) -> FlowRecord {
        FlowRecord {
            connections,
            ..record()
        }
    }

    fn number(news: Option<News>) -> u64 {
        match news {
            Some(News::Record(record)) => record.connections,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_latest_are_kept_and_a_follower_hears_what_comes_until_the_end() {
        let log = FlowLog::default();
        log.publish((0..KEPT as u64 + 5).map(numbered), 0);
        let recent = log.recent();
        assert_eq!((recent.len(), recent[0].connections), (KEPT, 5));
        let mut following = log.follow();
        assert_eq!(log.followers(), 1);
        assert_eq!(following.next_now(), None);
        log.publish([numbered(9_999)], 3);
        log.close();
        assert_eq!(number(following.next().await), 9_999);
        assert_eq!(following.next().await, Some(News::Missed(3)));
        assert_eq!(following.next().await, None);
        assert_eq!(log.follow().next().await, None, "it has ended");
    }

    #[tokio::test]
    async fn who_is_slow_is_told_how_much_was_missed() {
        let log = FlowLog::default();
        let mut following = log.follow();
        log.publish((0..BEHIND as u64 + 7).map(numbered), 0);
        assert_eq!(following.next().await, Some(News::Missed(7)));
        assert_eq!(number(following.next().await), 7);
    }
}
