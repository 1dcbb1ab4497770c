//! Metrics, their documentation, dashboards, recording rules, alerts and runbooks are in step: what one of them names,
//! the others have.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

mod labels;

mod rules;

mod grafana;
