//! What the agent finds out about emulated nodes, with real rules in the kernel and stand-ins for the services
//! that it asks.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

mod rig;

mod flavours;

mod engines;

mod refused;

mod many;

mod metadata;

mod pod_ips;
