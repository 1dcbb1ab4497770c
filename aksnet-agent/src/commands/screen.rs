//! `aksnet-agent top` on a terminal: the screen, fed by the keyboard, by the socket, and by signals. Each has a thread;
//! what happens goes through one channel to the state, which is drawn after it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ratatui::crossterm::event::{self, Event as Input};

use crate::{
    agent::Load,
    cli::{self, Top},
    commands::{alone::alone, reader, runtime, stop_signal},
    config::Effective,
    exit::{Exit, Failure, OrExit},
    live::{LiveQuery, Sort},
    preflight,
    socket::client::{Client, LiveAsker},
    top::screen::{App, Effect, Event, Options, Theme, terminal::Screen},
};

/// Between two looks at whether something happened, so that ages and counts go on.
const TICK: Duration = Duration::from_millis(250);
/// How long the end may wait for the keyboard.
const KEY: Duration = Duration::from_millis(50);
/// Until an agent that has gone is tried again, at first and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(5)];

/// Shows the screen until somebody quits, `--count` looks, or a signal.
///
/// # Errors
/// See `docs/exit-codes.md`. The terminal is as it was.
pub fn screen(args: &Top, effective: &Effective, load: impl Load) -> Result<(), Failure> {
    let options = Options {
        interval: args.interval,
        limit: args.limit.unwrap_or(Top::SCREEN_LIMIT),
        sort: match args.sort {
            cli::Sort::Bytes => Sort::ByteRate,
            cli::Sort::Packets => Sort::Packets,
            cli::Sort::Drops => Sort::Drops,
            cli::Sort::NatTime => Sort::Established,
        },
        count: args.count,
    };
    let theme = Theme::from_env(|name| std::env::var_os(name));
    let socket = &effective.config.socket;
    // What cannot be opened is said before the terminal is taken.
    if Client::connect(socket)?.is_some() {
        let stop = runtime()?;
        let (sender, receiver) = mpsc::channel();
        let signals = {
            let _inside = stop.enter();
            stop_signal()?
        };
        let word = sender.clone();
        stop.spawn(async move {
            signals.await;
            let _ended = word.send(Event::Stop);
        });
        return Show::new(&options, theme, socket, false).run(sender, &receiver);
    }
    preflight::check_for(&effective.config)?;
    let mut effective = effective.clone();
    // Looks are no fresher than the sweeps.
    let config = &mut effective.config;
    config.interval = config.interval.min(LiveQuery::every(options.interval));
    let socket = config.socket.clone();
    runtime()?.block_on(alone(&effective, load, |_top, mut sweeps| async move {
        // The first sweep waits for names; until then there is nothing to see, and what fails is said plainly.
        let _ended = sweeps.wait_for(|sweep| *sweep > 0).await;
        Beside::start(options, theme, socket)?.ended().await
    }))
}

/// The screen on a thread of its own, beside the agent's life. Dropping it ends it, and gives the terminal back first.
struct Beside {
    stop: Sender<Event>,
    ended: Option<tokio::sync::oneshot::Receiver<Result<(), Failure>>>,
    thread: Option<JoinHandle<()>>,
}

impl Beside {
    fn start(options: Options, theme: Theme, socket: PathBuf) -> Result<Self, Failure> {
        let (sender, receiver) = mpsc::channel();
        let (tell, ended) = tokio::sync::oneshot::channel();
        let stop = sender.clone();
        let thread = std::thread::Builder::new()
            .name("screen".into())
            .spawn(move || {
                let shown = Show::new(&options, theme, &socket, true).run(sender, &receiver);
                let _nobody = tell.send(shown);
            })
            .or_exit(Exit::Os)?;
        Ok(Self {
            stop,
            ended: Some(ended),
            thread: Some(thread),
        })
    }

    async fn ended(mut self) -> Result<(), Failure> {
        let Some(ended) = self.ended.take() else {
            return Ok(());
        };
        ended.await.unwrap_or_else(|_| Err(broke()))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ended = self.stop.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic has been told already.
            let _told = thread.join();
        }
    }
}

fn broke() -> Failure {
    Failure::new(
        Exit::Software,
        "top has broken off, please report what is above; `top --raw` may still work",
    )
}

/// What shows.
struct Show {
    app: App,
    theme: Theme,
    socket: PathBuf,
    own: bool,
    began: Instant,
}

impl Show {
    fn new(options: &Options, theme: Theme, socket: &Path, own: bool) -> Self {
        Self {
            app: App::new(options),
            theme,
            socket: socket.to_owned(),
            own,
            began: Instant::now(),
        }
    }

    fn run(mut self, sender: Sender<Event>, receiver: &Receiver<Event>) -> Result<(), Failure> {
        let no_terminal = |error: std::io::Error| {
            Failure::new(
                Exit::Os,
                format_args!("cannot use the terminal: {error}; `top --raw` needs none"),
            )
        };
        let mut screen = Screen::take().map_err(no_terminal)?;
        let link = Link::start(&self.socket, self.own, self.app.query(), sender.clone())?;
        let keys = Keys::start(sender)?;
        // A terminal that has gone can show nothing, and nobody is there to be told.
        let shown = self.turn(&mut screen, &link, receiver).or_else(|error| {
            if reader::has_gone() {
                Ok(())
            } else {
                Err(error)
            }
        });
        // The keyboard first: what is typed from now on is the shell's.
        drop(keys);
        drop(screen);
        drop(link);
        shown.map_err(no_terminal)
    }

    /// Takes what happens, all that has, and draws.
    fn turn(
        &mut self,
        screen: &mut Screen,
        link: &Link,
        receiver: &Receiver<Event>,
    ) -> std::io::Result<()> {
        loop {
            // Nobody else says so: crossterm reads on at the end of a terminal that has hung up, without a pause.
            if reader::has_gone() {
                return Ok(());
            }
            screen.show(&mut self.app, self.theme)?;
            let mut next = match receiver.recv_timeout(TICK) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => Event::Tick,
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            };
            loop {
                let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
                for effect in self.app.on(next, now) {
                    match effect {
                        Effect::Quit => return Ok(()),
                        Effect::Ask(query) => link.ask(*query),
                    }
                }
                match receiver.try_recv() {
                    Ok(event) => next = event,
                    Err(_) => break,
                }
            }
        }
    }
}

/// The keyboard.
struct Keys {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keys {
    fn start(sender: Sender<Event>) -> Result<Self, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("keys".into())
            .spawn(move || {
                while !stopping.load(Ordering::Acquire) {
                    let event = match event::poll(KEY) {
                        Ok(false) => continue,
                        Ok(true) => match event::read() {
                            Ok(Input::Key(key)) => Event::Key(key),
                            Ok(Input::Paste(text)) => Event::Paste(text),
                            Ok(Input::Resize(..)) => Event::Resize,
                            Ok(_) => continue,
                            // The terminal has gone.
                            Err(_) => Event::Stop,
                        },
                        Err(_) => Event::Stop,
                    };
                    let ends = event == Event::Stop;
                    if sender.send(event).is_err() || ends {
                        return;
                    }
                }
            })
            .or_exit(Exit::Os)?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else {
            return;
        };
        // At the end of a terminal that has gone the thread never comes back from crossterm; it ends with the process.
        if !reader::has_gone() {
            let _told = thread.join();
        }
    }
}

/// The connection to the agent, made again and again.
struct Link {
    asked: Arc<Mutex<Asked>>,
    /// Dropping it ends the wait for the next attempt.
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What is asked, and where, while there is a connection.
struct Asked {
    query: LiveQuery,
    asker: Option<LiveAsker>,
    ended: bool,
}

fn lock(asked: &Mutex<Asked>) -> MutexGuard<'_, Asked> {
    // Its fields are replaced whole.
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    fn start(
        socket: &Path,
        own: bool,
        query: LiveQuery,
        sender: Sender<Event>,
    ) -> Result<Self, Failure> {
        let asked = Arc::new(Mutex::new(Asked {
            query,
            asker: None,
            ended: false,
        }));
        let (wake, woken) = mpsc::channel();
        let (socket, shared) = (socket.to_owned(), Arc::clone(&asked));
        let thread = std::thread::Builder::new()
            .name("socket".into())
            .spawn(move || follow(&socket, own, &shared, &sender, &woken))
            .or_exit(Exit::Os)?;
        Ok(Self {
            asked,
            wake: Some(wake),
            thread: Some(thread),
        })
    }

    fn ask(&self, query: LiveQuery) {
        let mut asked = lock(&self.asked);
        let gone = asked
            .asker
            .as_mut()
            .is_some_and(|asker| asker.ask(&query).is_err());
        if gone {
            // Hangs up: the reader hears so, and connects again.
            asked.asker = None;
        }
        asked.query = query;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        {
            let mut asked = lock(&self.asked);
            asked.ended = true;
            asked.asker = None;
        }
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _told = thread.join();
        }
    }
}

/// Connects, hears, and connects again, until it is to end.
fn follow(
    socket: &Path,
    own: bool,
    asked: &Mutex<Asked>,
    sender: &Sender<Event>,
    woken: &Receiver<()>,
) {
    let mut wait = RETRY[0];
    loop {
        if let Ok(Some(client)) = Client::connect(socket) {
            let heard = hear(client, own, asked, sender);
            if heard {
                wait = RETRY[0];
            }
        }
        if lock(asked).ended {
            return;
        }
        let retry_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let gone = sender.send(Event::Gone { retry_ms });
        let woke = woken.recv_timeout(wait);
        if gone.is_err() || woke != Err(RecvTimeoutError::Timeout) {
            return;
        }
        wait = (wait * 2).min(RETRY[1]);
    }
}

/// Until the agent has gone. True if it had anything to say.
fn hear(client: Client, own: bool, asked: &Mutex<Asked>, sender: &Sender<Event>) -> bool {
    let mut answers = {
        let mut asked = lock(asked);
        if asked.ended {
            return false;
        }
        let Ok((ask, answers)) = client.live(&asked.query) else {
            return false;
        };
        asked.asker = Some(ask);
        answers
    };
    let mut heard = false;
    while let Ok(answer) = answers.hear() {
        let event = match answer {
            Ok(snapshot) => Event::Snapshot(snapshot),
            Err(why) => Event::Refused(why),
        };
        if !heard && sender.send(Event::Connected { own }).is_err() {
            break;
        }
        heard = true;
        if sender.send(event).is_err() {
            break;
        }
    }
    lock(asked).asker = None;
    heard
}
