//! Looking without a running agent: programs that are loaded for as long as somebody looks.

use std::sync::Arc;

use tokio::sync::watch;

use crate::{
    agent::{Agent, Load},
    board::Board,
    commands::{run::Deadline, stop_signal},
    config::Effective,
    exit::Failure,
    socket::{protocol::LiveSource, server::Claim},
};

/// Watches the node until `looks`, which is given the agent's own and word of its sweeps, has ended, or a signal comes.
/// Nothing stays attached.
///
/// # Errors
/// As `run`, and as `looks`.
pub(super) async fn alone<L: Future<Output = Result<(), Failure>>>(
    effective: &Effective,
    load: impl Load,
    looks: impl FnOnce(Arc<dyn LiveSource>, watch::Receiver<u64>) -> L,
) -> Result<(), Failure> {
    if effective.config.capture {
        eprintln!("aksnet-agent: {}", crate::capture::live::WITHOUT);
    }
    let stop = stop_signal()?;
    // Whoever looks next reads from this one: two agents would attach to the same interfaces.
    let claim = Claim::take(&effective.config.socket)?;
    let board = Arc::new(Board::new(effective));
    let mut agent = Agent::start(effective, board.clone(), load).await?;
    let top: Arc<dyn LiveSource> = agent.top();
    let looks = looks(top.clone(), board.sweeps());
    let ended = agent.live(async {
        tokio::select! {
            looked = looks => looked,
            _signal = stop => Ok(()),
            () = claim.serve(board, top) => Ok(()),
        }
    });
    let ended = ended.await;
    let _deadline = Deadline::of(&agent);
    agent.end();
    ended?
}
