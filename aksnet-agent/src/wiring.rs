//! Joins the kernel side and the accounts to the agent's life.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    agent::Parts,
    board::Board,
    config::Config,
    exit::{Exit, Failure},
    node::Node,
};

/// Loads the programs for this node and builds the accounts on their maps.
///
/// # Errors
/// When the kernel refuses the programs.
pub fn load(_config: &Config, _node: &Node, _board: &Arc<Board>) -> Result<Parts, Failure> {
    Err(Failure::new(
        Exit::Software,
        "this build has no programs to load",
    ))
}

/// A row of `top` in one line.
#[must_use]
pub fn row_text(row: &Value) -> String {
    let Value::Object(fields) = row else {
        return row.to_string();
    };
    let show = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    fields
        .iter()
        .map(|(name, value)| format!("{name}={}", show(value)))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_line() {
        let row = serde_json::json!({"class": "pod_to_pod", "packets": 3});
        assert_eq!(row_text(&row), "class=pod_to_pod packets=3");
    }
}
