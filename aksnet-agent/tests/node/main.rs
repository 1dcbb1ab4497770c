//! The programs on an emulated node, on real packets, judged by what the kernel itself counted.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

mod watch;

mod rows;

mod conservation;

mod drops;

mod evidence;

mod sockets;

mod churn;
