//! The agent's end of the socket.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines, Take},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use super::protocol::{Answer, DropsQuery, FlowsQuery, LiveSource, Request, TopQuery};
use crate::{
    board::Board,
    doctor::gather,
    droplog::News,
    exit::{Exit, Failure},
    flowlog,
    live::{LiveQuery, Snapshot},
};

/// A request longer than this is no request.
const LONGEST_REQUEST: u64 = 64 * 1024;

/// Clients at once. Each may cost an answer and what it is behind; those who do not read keep theirs for as long as they like,
/// as whoever may open the socket may do worse.
const CLIENTS: usize = 64;

/// A sweep that is so late does not come.
const NO_SWEEP: Duration = Duration::from_secs(3);

/// What a client says, line by line.
type Requests = Lines<BufReader<Take<OwnedReadHalf>>>;

/// The socket, taken: nobody else has it, and it is removed when this is dropped.
pub struct Claim {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Another agent may have taken the path meanwhile, if somebody removed the file.
        if fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

impl Claim {
    /// Takes the path. A socket that a killed agent left is replaced; a living agent's is not.
    ///
    /// # Errors
    /// When another agent lives there, something else stands there, or the directory cannot be written.
    pub fn take(path: &Path) -> Result<Self, Failure> {
        let failed = |what: &str, error: std::io::Error| {
            let exit = match error.kind() {
                std::io::ErrorKind::PermissionDenied => Exit::NoPermission,
                _ => Exit::CantCreate,
            };
            let path = path.display();
            Failure::new(
                exit,
                format_args!(
                    "cannot {what} the socket {path}: {error}; choose another with --socket"
                ),
            )
        };
        if let Ok(present) = fs::symlink_metadata(path) {
            let shown = path.display();
            if !present.file_type().is_socket() {
                return Err(Failure::new(
                    Exit::CantCreate,
                    format_args!(
                        "{shown} is there and is no socket; remove it, or choose another with --socket"
                    ),
                ));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(Failure::new(
                    Exit::CantCreate,
                    format_args!(
                        "another agent is running and answers at {shown}; two would attach to the same \
                         interfaces. Stop it first (or, to watch another network namespace, choose \
                         another path with --socket)"
                    ),
                ));
            }
        }
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty());
        if let Some(directory) = directory {
            fs::create_dir_all(directory).map_err(|e| failed("create the directory of", e))?;
        }
        // Made under another name, closed to others, then moved: there is no moment in which anybody else
        // could open it, and the move also replaces what a killed agent left.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let made = path.with_file_name(name);
        let _left = fs::remove_file(&made);
        let taken = UnixListener::bind(&made).and_then(|listener| {
            fs::set_permissions(&made, fs::Permissions::from_mode(0o600))?;
            let inode = fs::symlink_metadata(&made)?.ino();
            fs::rename(&made, path)?;
            Ok((listener, inode))
        });
        match taken {
            Ok((listener, inode)) => Ok(Self {
                listener,
                path: path.to_owned(),
                inode,
            }),
            Err(error) => {
                let _left = fs::remove_file(&made);
                Err(failed("create", error))
            }
        }
    }

    /// Answers clients until it is cancelled.
    pub async fn serve(&self, board: Arc<Board>, top: Arc<dyn LiveSource>) {
        let mut clients = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) if clients.len() >= CLIENTS => refuse(&stream),
                    Ok((stream, _)) => {
                        let (board, top) = (board.clone(), top.clone());
                        clients.spawn(async move {
                            if let Err(error) = answer(stream, &board, top.as_ref()).await {
                                tracing::debug!("a client of the socket went away: {error}");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!("the socket accepts no client: {error}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
    }
}

/// Says so, as far as it is heard without waiting.
fn refuse(stream: &UnixStream) {
    tracing::debug!("a client of the socket is refused: {CLIENTS} are there");
    let text = format!("{CLIENTS} clients are being answered; end one of them");
    if let Ok(line) = serde_json::to_string(&Answer::Error(text)) {
        // A fresh socket's buffer has room for it.
        let _heard = stream.try_write(format!("{line}\n").as_bytes());
    }
}

async fn answer(stream: UnixStream, board: &Board, top: &dyn LiveSource) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines: Requests = BufReader::new(read.take(LONGEST_REQUEST)).lines();
    while let Some(line) = lines.next_line().await? {
        match serde_json::from_str(&line) {
            Ok(Request::Status) => say(&mut write, &Answer::Status(board.status())).await?,
            Ok(Request::Doctor) => {
                let mut evidence = top.evidence();
                gather::add_board(&mut evidence, &board.status(), &board.programs());
                say(&mut write, &Answer::Evidence(Box::new(evidence))).await?;
            }
            Ok(Request::Top(query)) => {
                tokio::select! {
                    ended = stream_rows(&mut write, top, &query) => return ended,
                    // The client says nothing more: either it hung up, or it wants something else.
                    _ = lines.next_line() => return Ok(()),
                }
            }
            Ok(Request::Live(query)) => {
                return stream_live(&mut write, &mut lines, board, top, query).await;
            }
            Ok(Request::Drops(query)) => {
                tokio::select! {
                    ended = stream_drops(&mut write, top, query) => return ended,
                    _ = lines.next_line() => return Ok(()),
                }
            }
            Ok(Request::Flows(query)) => {
                tokio::select! {
                    ended = stream_flows(&mut write, top, &query) => ended?,
                    _ = lines.next_line(), if query.follow => return Ok(()),
                }
            }
            Ok(Request::Session) => {
                let mut session = top.session();
                session["status"] = board.status();
                say(&mut write, &Answer::Session(session)).await?;
            }
            Err(error) => {
                let text = format!("not a request: {error}");
                say(&mut write, &Answer::Error(text)).await?;
            }
        }
    }
    Ok(())
}

async fn stream_rows(
    write: &mut OwnedWriteHalf,
    top: &dyn LiveSource,
    query: &TopQuery,
) -> std::io::Result<()> {
    let mut reader = top.open();
    // From here on everything counts; the first look tells what happened in the first interval.
    let _before = reader.rows(query);
    let mut looks = tokio::time::interval(query.interval());
    looks.tick().await;
    loop {
        looks.tick().await;
        say(write, &Answer::Rows(reader.rows(query))).await?;
    }
}

async fn stream_live(
    write: &mut OwnedWriteHalf,
    lines: &mut Requests,
    board: &Board,
    top: &dyn LiveSource,
    mut query: LiveQuery,
) -> std::io::Result<()> {
    let mut reader = top.open();
    let mut sweeps = board.sweeps();
    loop {
        let answered = *sweeps.borrow_and_update();
        match reader.live(&query) {
            Ok(snapshot) => {
                let health = Some(board.health());
                let snapshot = Snapshot { health, ..snapshot };
                say(write, &Answer::Live(Box::new(snapshot))).await?;
            }
            Err(why) => say(write, &Answer::Error(why)).await?,
        }
        // Somebody may ask for long, a little each time.
        lines.get_mut().get_mut().set_limit(LONGEST_REQUEST);
        tokio::select! {
            () = next_look(&mut sweeps, answered, query.interval()) => {}
            line = lines.next_line() => {
                let Some(line) = line? else { return Ok(()) };
                match serde_json::from_str(&line) {
                    Ok(Request::Live(another)) => query = another,
                    // It wants something else.
                    Ok(_) => return Ok(()),
                    Err(error) => {
                        let text = format!("not a request: {error}");
                        return say(write, &Answer::Error(text)).await;
                    }
                }
            }
        }
    }
}

/// Waits until there is something new to see: a sweep since the last answer, and the interval is over but for a little,
/// as it and the sweeps' keep no step. Where no sweep comes, that is what there is to see.
async fn next_look(sweeps: &mut watch::Receiver<u64>, answered: u64, interval: Duration) {
    let swept = async {
        tokio::time::sleep(interval.mul_f64(0.9)).await;
        // An error says that the agent ends.
        let _ended = sweeps.wait_for(|sweep| *sweep > answered).await;
    };
    let _late = tokio::time::timeout(interval + NO_SWEEP, swept).await;
}

async fn stream_drops(
    write: &mut OwnedWriteHalf,
    top: &dyn LiveSource,
    query: DropsQuery,
) -> std::io::Result<()> {
    let mut following = top.drop_log().follow(query.recent);
    while let Some(news) = following.next().await {
        let answer = match news {
            News::Record(record) => Answer::Drop(Box::new((*record).clone())),
            News::Missed(missed) => Answer::Missed(missed),
        };
        say(write, &answer).await?;
    }
    Ok(())
}

async fn stream_flows(
    write: &mut OwnedWriteHalf,
    top: &dyn LiveSource,
    query: &FlowsQuery,
) -> std::io::Result<()> {
    if query.follow {
        let mut following = top.flow_log().follow();
        while let Some(news) = following.next().await {
            let answer = match news {
                flowlog::News::Record(record) if query.filter.takes(&record) => {
                    Answer::Flow(Box::new((*record).clone()))
                }
                flowlog::News::Record(_) => continue,
                flowlog::News::Missed(missed) => Answer::Missed(missed),
            };
            say(write, &answer).await?;
        }
    } else {
        for record in flowlog::snapshot(top, &query.filter, query.limit) {
            say(write, &Answer::Flow(Box::new(record))).await?;
        }
    }
    say(write, &Answer::Done).await
}

async fn say(write: &mut OwnedWriteHalf, answer: &Answer) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    write.write_all(&line).await
}
