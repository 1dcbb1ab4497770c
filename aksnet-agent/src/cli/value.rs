//! What flags take as *values*: names from a list, with the one that was probably meant, and numbers in bounds.

use crate::{
    classify::Class, collect::cause::Cause, config::suggest::hint, doctor::CHECKS,
    policy::engine::Engine,
};

fn one_of(what: &str, text: &str, names: &[&str]) -> Result<String, String> {
    if names.contains(&text) {
        return Ok(text.to_owned());
    }
    let hint = hint(text, names.iter().copied());
    Err(format!("no {what}; there are {}{hint}", names.join(", ")))
}

pub(super) fn class(text: &str) -> Result<String, String> {
    one_of("class", text, &Class::ALL.map(Class::name))
}

pub(super) fn nat(text: &str) -> Result<String, String> {
    one_of("kind of NAT", text, &["none", "snat", "dnat", "both"])
}

pub(super) fn check(text: &str) -> Result<String, String> {
    let names: Vec<&str> = CHECKS.iter().map(|check| check.name).collect();
    one_of("check", text, &names)
}

pub(super) fn cause(text: &str) -> Result<Cause, String> {
    Cause::by_name(text).ok_or_else(|| {
        let names: Vec<&str> = Cause::ALL.into_iter().map(Cause::name).collect();
        format!("no cause; there are {}", names.join(", "))
    })
}

pub(super) fn engine(text: &str) -> Result<Engine, String> {
    let names = || Engine::ALL.into_iter().map(Engine::name);
    Engine::from_name(text).ok_or_else(|| {
        let all: Vec<&str> = names().collect();
        format!("it is one of {}{}", all.join(", "), hint(text, names()))
    })
}

pub(super) fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|s| (0.1..=3600.0).contains(s))
        .ok_or_else(|| "takes seconds from 0.1 to 3600".to_owned())
}
