//! What the follower does where the kernel gives nothing.

use super::*;

#[test]
fn an_error_says_what_to_do() {
    for (errno, says) in [
        (libc::EPERM, "CAP_NET_ADMIN"),
        (libc::EINVAL, "no ctnetlink"),
        (libc::EOPNOTSUPP, "no ctnetlink"),
    ] {
        let text = explain(&io::Error::from_raw_os_error(errno));
        assert!(text.contains(says), "{text}");
    }
}

#[test]
fn a_table_that_is_not_followed_is_not_known_rather_than_empty() {
    let follower = Follower::start(FollowConfig {
        mode: ConntrackMode::Off,
        proc: "/nonexistent".into(),
        ..FollowConfig::default()
    })
    .expect("a thread");
    let snapshot = follower.snapshot();
    assert_eq!(follower.status().table, TableState::Off);
    assert_eq!(
        (snapshot.ports, snapshot.azure, snapshot.table_known),
        (None, None, None)
    );
}

#[test]
fn dropping_a_follower_ends_its_thread() {
    let follower = Follower::start(FollowConfig {
        mode: ConntrackMode::Off,
        ..FollowConfig::default()
    })
    .expect("a thread");
    let shared = Arc::downgrade(&follower.shared);
    drop(follower);
    assert!(shared.upgrade().is_none(), "nobody holds what it followed");
}
