//! `aksnet-agent run`: the agent's life with its servers, from the first look at the node to the signal.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    admin::{self, Door, Limits},
    agent::{Agent, Load},
    board::Board,
    cli::{REVISION, VERSION},
    commands::stop_signal,
    config::Effective,
    exit::{Exit, Failure, OrExit},
    page::{self, Hosts, Look, Place, Shown},
    socket::server::Claim,
};

/// From the signal to the end, besides detaching.
const DEADLINE: Duration = Duration::from_millis(1_900);
/// Of that, for scrapes that are under way.
const DRAIN: Duration = Duration::from_millis(300);
/// To detach the two programs of an interface one after the other: the kernel waits for an RCU grace period each time, 7 ms
/// on average and 27 at most (docs/overhead.md).
const DETACHING: Duration = Duration::from_millis(50);

/// The whole life, until SIGTERM or SIGINT.
///
/// # Errors
/// See `docs/exit-codes.md`. Nothing stays attached.
pub async fn run(effective: &Effective, load: impl Load) -> Result<(), Failure> {
    let stop = stop_signal()?;
    run_until(stop, effective, load).await
}

/// The whole life, until `stop` names what stops it.
async fn run_until(
    stop: impl Future<Output = &'static str>,
    effective: &Effective,
    load: impl Load,
) -> Result<(), Failure> {
    let config = &effective.config;
    tracing::info!("aksnet-agent {VERSION} ({REVISION})");
    tracing::info!("config: {}", effective.to_line());
    // Before anything is attached: these are the errors of a second agent started by mistake.
    let listener = admin::bind(config.listen).await?;
    let address = listener.local_addr().or_exit(Exit::Os)?;
    let door = Door::of(config).await?;
    let scheme = door.scheme();
    let claim = Claim::take(&config.socket)?;
    let place = Place::take(config.page, config.listen).await;
    let board = Arc::new(Board::new(effective));
    let mut agent = Agent::start(effective, board.clone(), load).await?;

    let (drain, draining) = watch::channel(());
    let drained = || {
        let mut draining = draining.clone();
        async move {
            let _either_way = draining.changed().await;
        }
    };
    let top = agent.top();
    let look: Look = Arc::new(move |query| top.open().live(query));
    let shown = Arc::new(Shown::new(board.clone(), look));
    let page_at = |address: SocketAddr| page::router(shown, Hosts::at(address.ip()));
    let line = place.line();
    let (root, page) = match place {
        Place::Nowhere(_) => (admin::index(&line), None),
        Place::Beside => (page_at(address), None),
        Place::Own(listener, at) => {
            tracing::info!("serving the page at http://{at}/");
            let page = page::serve(listener, page_at(at), drained());
            (admin::index(&line), Some(tokio::spawn(page)))
        }
    };
    let admin = admin::serve(
        listener,
        board.clone(),
        agent.metrics(),
        root,
        (door, Limits::default()),
        drained(),
    );
    let servers = tokio::spawn(admin);
    let servers = async move {
        let _ended = servers.await;
        if let Some(page) = page {
            let _ended = page.await;
        }
    };
    let claim = Arc::new(claim);
    let socket = tokio::spawn({
        let (claim, top) = (claim.clone(), agent.top());
        async move { claim.serve(board, top).await }
    });
    tracing::info!(
        "serving {scheme}://{address}/ and {}",
        config.socket.display()
    );

    let lived = agent.live(stop).await;
    if let Ok(signal) = &lived {
        tracing::info!("{signal}: stopping");
    }
    let _deadline = Deadline::of(&agent);
    let flows = agent.top().flow_log();
    agent.end();
    // Those who follow hear of what the last sweep found.
    flows.close();
    let heard = async {
        while flows.followers() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _late = tokio::time::timeout(DRAIN, heard).await;
    socket.abort();
    let _aborted = socket.await;
    drop(claim);
    drop(drain);
    if tokio::time::timeout(DRAIN, servers).await.is_err() {
        tracing::debug!("a scrape was cut off");
    }
    lived.map(|_signal| ())
}

/// Ends the process if stopping takes too long, whatever hangs; the kernel detaches what is tied to it.
/// Disarmed by dropping it.
pub(crate) struct Deadline {
    _armed: mpsc::Sender<()>,
}

impl Deadline {
    /// For an agent that is about to end.
    pub(crate) fn of(agent: &Agent) -> Self {
        Self::after(DEADLINE + DETACHING * agent.watched())
    }

    /// In so long.
    fn after(time: Duration) -> Self {
        let (armed, disarmed) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            if disarmed.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
                tracing::error!("stopping took longer than {time:?}; leaving as it is");
                std::process::exit(i32::from(Exit::Os.code()));
            }
        });
        Self { _armed: armed }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
        time::Instant,
    };

    use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::oneshot,
    };

    use crate::{
        agent::{Parts, Sweeper},
        attachments::tests::Fake,
        bpf::attach_error::AttachError,
        config::{file, merge::merge},
        droplog::DropLog,
        flowlog::{Filter, FlowLog, FlowRecord},
        live::{self, LiveQuery},
        node::{netlink::Netlink, tests::netns},
        plan::Plan,
        socket::protocol::{LiveSource, TopQuery, TopReader},
        survey::Surveyed,
    };

    #[derive(Clone, Default)]
    pub(crate) struct Accounts {
        sweeps: Arc<AtomicUsize>,
        plans: Arc<Mutex<Vec<u64>>>,
    }

    impl Sweeper for Accounts {
        fn sweep(&mut self, _now: Instant) -> anyhow::Result<()> {
            self.sweeps.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        fn finish(&mut self) -> anyhow::Result<()> {
            self.sweep(Instant::now())
        }
        fn set_plan(&mut self, plan: Arc<Plan>) {
            self.plans.lock().unwrap().push(plan.id());
        }
        fn set_survey(&mut self, _surveyed: &Surveyed) {}
        fn tables(&self) -> Value {
            json!({})
        }
    }

    impl LiveSource for Accounts {
        fn drop_log(&self) -> Arc<DropLog> {
            Arc::default()
        }
        fn flow_log(&self) -> Arc<FlowLog> {
            Arc::default()
        }
        fn live_flows(&self, _filter: &Filter, _limit: usize) -> Vec<FlowRecord> {
            Vec::new()
        }
        fn session(&self) -> Value {
            json!({})
        }
        fn open(&self) -> Box<dyn TopReader> {
            Box::new(self.clone())
        }
    }

    impl TopReader for Accounts {
        fn rows(&mut self, _query: &TopQuery) -> Vec<Value> {
            vec![json!({"sweeps": self.sweeps.load(Ordering::Relaxed)})]
        }
        fn live(&mut self, _query: &LiveQuery) -> Result<live::Snapshot, String> {
            Ok(live::Snapshot::default())
        }
    }

    pub(crate) fn load(fake: &Fake, accounts: &Accounts) -> impl Load {
        let (fake, accounts) = (fake.clone(), accounts.clone());
        move |_: &_, _: &_, _: &_| {
            Ok(Parts {
                datapath: Box::new(fake),
                sweeper: Box::new(accounts.clone()),
                metrics: Arc::new(|| Ok("aksnet_node_info 1\n".to_owned())),
                top: Arc::new(accounts),
            })
        }
    }

    pub(crate) fn effective(dir: &std::path::Path) -> Effective {
        let socket = dir.join("agent.sock");
        let text = format!(
            "listen='127.0.0.1:9435'\ninterval='100ms'\nsocket={socket:?}\n\
             kubernetes='off'\ncri_socket='off'\nconntrack='off'"
        );
        merge(vec![file::read("test", &text).unwrap()]).unwrap()
    }

    async fn get(path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect("127.0.0.1:9435")
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
        for _ in 0..250 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not within 5 s: {what}");
    }

    /// A bridge with a pod, and `lo` up so that the admin server can be reached.
    pub(crate) async fn network(netlink: &Netlink, pod: std::os::fd::RawFd) -> u32 {
        let link = netlink.handle().link();
        link.set(LinkUnspec::new_with_name("lo").up().build())
            .execute()
            .await
            .unwrap();
        link.add(LinkBridge::new("cbr0").build())
            .execute()
            .await
            .unwrap();
        let links = netlink.links().await.unwrap();
        let bridge = links.iter().find(|l| l.name == "cbr0").unwrap().index;
        add_pod(netlink, pod, bridge, 0).await;
        bridge
    }

    async fn add_pod(netlink: &Netlink, pod: std::os::fd::RawFd, bridge: u32, n: u32) {
        let link = netlink.handle().link();
        let (host, inside) = (format!("veth{n}"), format!("p{n}"));
        link.add(LinkVeth::new(&host, &inside).build())
            .execute()
            .await
            .unwrap();
        let inside = LinkUnspec::new_with_name(&inside).setns_by_fd(pod).build();
        link.set(inside).execute().await.unwrap();
        let host = LinkUnspec::new_with_name(&host)
            .controller(bridge)
            .up()
            .build();
        link.set(host).execute().await.unwrap();
    }

    #[test]
    fn a_life_from_start_to_signal() {
        netns::run(|pod| async move {
            let dir = tempfile::tempdir().unwrap();
            let effective = effective(dir.path());
            let socket = effective.config.socket.clone();
            let netlink = Netlink::open().unwrap();
            let bridge = network(&netlink, pod).await;
            let (fake, accounts) = (Fake::default(), Accounts::default());
            let (signal, stopped) = oneshot::channel();
            let stop = async { stopped.await.unwrap() };
            let life = run_until(stop, &effective, load(&fake, &accounts));

            let outside = async {
                eventually("ready", async || get("/ready").await.contains("200 OK")).await;
                assert_eq!(fake.attached(), ["veth0"]);
                assert!(get("/metrics").await.ends_with("aksnet_node_info 1\n"));
                assert!(get("/status").await.contains("port of cbr0"));

                add_pod(&netlink, pod, bridge, 1).await;
                eventually("veth1 is attached", async || fake.attached().len() == 2).await;
                assert!(
                    accounts.plans.lock().unwrap().len() > 1,
                    "the plan knows the interface"
                );
                let links = netlink.links().await.unwrap();
                let veth0 = links.iter().find(|l| l.name == "veth0").unwrap().index;
                netlink.handle().link().del(veth0).execute().await.unwrap();
                eventually("veth0 is let go", async || fake.attached() == ["veth1"]).await;

                let before = accounts.sweeps.load(Ordering::Relaxed);
                eventually("sweeps go on", async || {
                    accounts.sweeps.load(Ordering::Relaxed) > before + 2
                })
                .await;
                assert!(socket.exists());
                signal.send("SIGTERM").unwrap();
                Instant::now()
            };
            let (ended, signalled) = tokio::join!(life, outside);
            ended.unwrap();
            assert!(signalled.elapsed() < Duration::from_secs(2));
            assert!(fake.attached().is_empty(), "nothing stays attached");
            assert!(!socket.exists());
        });
    }

    #[test]
    fn not_ready_says_why_until_the_kernel_lets_it() {
        netns::run(|pod| async move {
            let dir = tempfile::tempdir().unwrap();
            let effective = effective(dir.path());
            let netlink = Netlink::open().unwrap();
            network(&netlink, pod).await;
            let (fake, accounts) = (Fake::default(), Accounts::default());
            fake.answer("veth0", AttachError::Rejected("no memory".into()));
            let (signal, stopped) = oneshot::channel();
            let stop = async { stopped.await.unwrap() };
            let life = run_until(stop, &effective, load(&fake, &accounts));
            let outside = async {
                eventually("says why", async || {
                    let answer = get("/ready").await;
                    answer.contains("503") && answer.contains("veth0: no memory")
                })
                .await;
                fake.0.lock().unwrap().answers.clear();
                eventually("tried again", async || {
                    get("/ready").await.contains("200 OK")
                })
                .await;
                signal.send("SIGINT").unwrap();
            };
            let (ended, ()) = tokio::join!(life, outside);
            ended.unwrap();
        });
    }

    #[test]
    fn a_refused_load_leaves_nothing_behind() {
        netns::run(|_| async {
            let dir = tempfile::tempdir().unwrap();
            let effective = effective(dir.path());
            let refused = |_: &_, _: &_, _: &_| Err(Failure::new(Exit::Software, "verifier"));
            let stop = std::future::pending();
            let failure = run_until(stop, &effective, refused).await.unwrap_err();
            assert_eq!(failure.exit, Exit::Software);
            assert!(!effective.config.socket.exists());
        });
    }
}
