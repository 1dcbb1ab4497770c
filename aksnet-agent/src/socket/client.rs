//! The asking end of the socket. Plain blocking reads: there is nothing else to do meanwhile.

use std::{
    io::{BufRead, BufReader, ErrorKind, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::protocol::{Answer, DropsQuery, FlowsQuery, Request, TopQuery};
use crate::{
    doctor::Evidence,
    droplog::News,
    exit::{Exit, Failure, OrExit},
    flowlog,
    live::{LiveQuery, Snapshot},
};

/// An agent that takes no question for so long hangs: whoever asks has a screen to show meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// A connection to the running agent.
pub struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects; `None` if no agent is running.
    ///
    /// # Errors
    /// When the socket is there but may not be opened.
    pub fn connect(path: &Path) -> Result<Option<Self>, Failure> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Some(Self {
                reader: BufReader::new(stream),
            })),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => {
                let (exit, hint) = match error.kind() {
                    ErrorKind::PermissionDenied => (Exit::NoPermission, "; run as root"),
                    _ => (Exit::Os, ""),
                };
                let path = path.display();
                Err(Failure::new(
                    exit,
                    format_args!("cannot open the agent's socket {path}: {error}{hint}"),
                ))
            }
        }
    }

    /// The busiest flows of each interval, until the agent ends.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn top(
        mut self,
        query: TopQuery,
    ) -> Result<impl Iterator<Item = Result<Vec<Value>, Failure>>, Failure> {
        self.ask(&Request::Top(query))?;
        Ok(std::iter::from_fn(move || {
            Some(self.hear().and_then(|answer| match answer {
                Answer::Rows(rows) => Ok(rows),
                other => Err(unexpected(&other)),
            }))
        }))
    }

    /// Drops as they happen, until the agent ends.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn drops(
        mut self,
        query: DropsQuery,
    ) -> Result<impl Iterator<Item = Result<News, Failure>>, Failure> {
        self.ask(&Request::Drops(query))?;
        Ok(std::iter::from_fn(move || {
            Some(self.hear().and_then(|answer| match answer {
                Answer::Drop(record) => Ok(News::Record(Arc::from(record))),
                Answer::Missed(missed) => Ok(News::Missed(missed)),
                other => Err(unexpected(&other)),
            }))
        }))
    }

    /// Flow records, until there are no more.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn flows(
        mut self,
        query: FlowsQuery,
    ) -> Result<impl Iterator<Item = Result<flowlog::News, Failure>>, Failure> {
        self.ask(&Request::Flows(query))?;
        Ok(std::iter::from_fn(move || {
            let heard = self.hear().and_then(|answer| match answer {
                Answer::Flow(record) => Ok(Some(flowlog::News::Record(Arc::from(record)))),
                Answer::Missed(missed) => Ok(Some(flowlog::News::Missed(missed))),
                Answer::Done => Ok(None),
                other => Err(unexpected(&other)),
            });
            heard.transpose()
        }))
    }

    /// What a recording begins with.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn session(mut self) -> Result<Value, Failure> {
        self.ask(&Request::Session)?;
        match self.hear()? {
            Answer::Session(session) => Ok(session),
            other => Err(unexpected(&other)),
        }
    }

    /// All views of the node, again and again: an end to ask at, and one to hear at, perhaps on another thread.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn live(mut self, query: &LiveQuery) -> Result<(LiveAsker, LiveAnswers), Failure> {
        let asker = LiveAsker(self.reader.get_ref().try_clone().or_exit(Exit::Os)?);
        asker
            .0
            .set_write_timeout(Some(PATIENCE))
            .or_exit(Exit::Os)?;
        self.ask(&Request::Live(query.clone()))?;
        Ok((asker, LiveAnswers(self)))
    }

    /// What `/status` shows.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn status(mut self) -> Result<Value, Failure> {
        self.ask(&Request::Status)?;
        match self.hear()? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    /// What `doctor` judges by.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn evidence(mut self) -> Result<Evidence, Failure> {
        self.ask(&Request::Doctor)?;
        match self.hear()? {
            Answer::Evidence(evidence) => Ok(*evidence),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(request).or_exit(Exit::Software)?;
        line.push(b'\n');
        self.reader.get_mut().write_all(&line).map_err(|_| gone())
    }

    fn hear(&mut self) -> Result<Answer, Failure> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(n) if n > 0 => serde_json::from_str(&line).or_exit(Exit::Unavailable),
            _ => Err(gone()),
        }
    }
}

/// Asks for other views.
pub struct LiveAsker(UnixStream);

impl LiveAsker {
    /// From now on, and at once.
    ///
    /// # Errors
    /// When the agent has gone.
    pub fn ask(&mut self, query: &LiveQuery) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(&Request::Live(query.clone())).or_exit(Exit::Software)?;
        line.push(b'\n');
        self.0.write_all(&line).map_err(|_| gone())
    }
}

impl Drop for LiveAsker {
    /// Hangs up, so that whoever hears is not left waiting.
    fn drop(&mut self) {
        let _gone = self.0.shutdown(std::net::Shutdown::Both);
    }
}

/// Hears what is answered.
pub struct LiveAnswers(Client);

impl LiveAnswers {
    /// The next snapshot; the inner error is what the agent did not understand of the last question.
    ///
    /// # Errors
    /// When the agent has gone, or is of another version.
    pub fn hear(&mut self) -> Result<Result<Box<Snapshot>, String>, Failure> {
        match self.0.hear()? {
            Answer::Live(snapshot) => Ok(Ok(snapshot)),
            Answer::Error(why) => Ok(Err(why)),
            other => Err(unexpected(&other)),
        }
    }
}

fn gone() -> Failure {
    Failure::new(
        Exit::Unavailable,
        "the agent has ended; start it again, or look at its log",
    )
}

fn unexpected(answer: &Answer) -> Failure {
    let why = match answer {
        Answer::Error(why) => why.as_str(),
        _ => "it answered something else",
    };
    Failure::new(
        Exit::Unavailable,
        format_args!(
            "the running agent did not understand, perhaps it is of another version: {why}"
        ),
    )
}
