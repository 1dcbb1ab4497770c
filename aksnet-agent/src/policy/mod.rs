//! Why a flow is denied, or should have been: Kubernetes network policies (`networking.k8s.io/v1`) as values, and what
//! they say of a flow. Pure: no clock, no API, no packet.

// What a policy says, reduced as it arrives.
pub mod model;
