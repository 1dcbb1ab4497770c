//! `aksnet-agent run`: the agent's life with its servers, from the first look at the node to the signal.

use std::{sync::Arc, time::Duration};

use tokio::sync::oneshot;

use crate::{
    admin,
    agent::{Agent, Load},
    board::Board,
    cli::{REVISION, VERSION},
    commands::stop_signal,
    config::Effective,
    exit::{Exit, Failure, OrExit},
    socket::server::Claim,
};

/// From the signal to the end.
const DEADLINE: Duration = Duration::from_millis(1_900);
/// Of that, for scrapes that are under way.
const DRAIN: Duration = Duration::from_millis(300);

/// The whole life, until SIGTERM or SIGINT.
///
/// # Errors
/// See `docs/exit-codes.md`. Nothing stays attached.
pub async fn run(effective: &Effective, load: impl Load) -> Result<(), Failure> {
    let config = &effective.config;
    tracing::info!("aksnet-agent {VERSION} ({REVISION})");
    tracing::info!("config: {}", effective.to_line());
    let stop = stop_signal()?;
    // Before anything is attached: these are the errors of a second agent started by mistake.
    let listener = admin::bind(config.listen).await?;
    let address = listener.local_addr().or_exit(Exit::Os)?;
    let claim = Claim::take(&config.socket)?;
    let board = Arc::new(Board::new(effective));
    let mut agent = Agent::start(effective, board.clone(), load).await?;

    let (drain, drained) = oneshot::channel::<()>();
    let drained = async move {
        let _either_way = drained.await;
    };
    let admin = admin::serve(listener, board.clone(), agent.metrics(), drained);
    let admin = tokio::spawn(admin);
    let claim = Arc::new(claim);
    let socket = tokio::spawn({
        let (claim, top) = (claim.clone(), agent.top());
        async move { claim.serve(board, top).await }
    });
    tracing::info!("serving http://{address}/ and {}", config.socket.display());

    let lived = agent.live(stop).await;
    if let Ok(signal) = &lived {
        tracing::info!("{signal}: stopping");
    }
    end_by(DEADLINE);
    agent.end();
    socket.abort();
    let _aborted = socket.await;
    drop(claim);
    drop(drain);
    if tokio::time::timeout(DRAIN, admin).await.is_err() {
        tracing::debug!("a scrape was cut off");
    }
    lived.map(|_signal| ())
}

/// Whatever hangs, the process ends; the kernel detaches what is tied to it.
pub(crate) fn end_by(deadline: Duration) {
    std::thread::spawn(move || {
        std::thread::sleep(deadline);
        tracing::error!("stopping took longer than {deadline:?}; leaving as it is");
        std::process::exit(i32::from(Exit::Os.code()));
    });
}
