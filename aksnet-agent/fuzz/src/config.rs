//! Any config file, environment and flags: refused in one line, or laid over each other into a config that is written
//! and read back as the same.
//!
//! What stands behind the first zero byte is the environment, a `NAME=VALUE` each line.

use aksnet_agent::config::{file, merge};

pub(crate) fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (text, environment) = text.split_once('\0').unwrap_or((&text, ""));
    let variables: Vec<(&str, &str)> = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .collect();
    let variable = |name: &str| {
        let found = variables.iter().find(|(one, _)| *one == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    for warning in merge::unknown_env(variables.iter().map(|(name, _)| *name)) {
        assert!(!warning.is_empty());
    }
    let given = match file::read("agent.toml", text) {
        Ok(given) => given,
        Err(error) => return one_line(&error),
    };
    let effective = match merge::merge(vec![given, merge::from_env(variable)]) {
        Ok(effective) => effective,
        Err(error) => return one_line(&error),
    };
    assert_eq!(effective.to_line().lines().count(), 1);
    assert!(effective.to_json().is_object());
    let written = effective.to_toml();
    let again = file::read("again.toml", &written)
        .and_then(|given| merge::merge(vec![given]))
        .unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(again.config, effective.config, "{written}");
}

fn one_line(error: &merge::ConfigError) {
    let error = error.to_string();
    assert_eq!(error.lines().count(), 1, "{error}");
}
