//! *OTLP*: flow records as logs, and the metrics under their own names, for an OpenTelemetry collector. Off unless an
//! endpoint is configured.

// Values to messages.
pub mod message;

// Messages to the collector.
pub mod send;
