//! `aksnet-agent completions` and `aksnet-agent man`: what shells and readers need to know of the command line, made
//! from the command line itself.

use std::{fs, path::Path};

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{
    cli::Cli,
    commands::print,
    exit::{Exit, Failure, OrExit},
};

/// Prints the completions.
///
/// # Errors
/// When they cannot be written. A reader that went away is no error.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "aksnet-agent", &mut text);
    print(&text)
}

/// Prints the manual page, or writes one for each command into a directory.
///
/// # Errors
/// When it cannot be written.
pub fn man(dir: Option<&Path>) -> Result<(), Failure> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let Some(dir) = dir else {
        return print(&page(command));
    };
    let pages = pages(command);
    for (name, text) in &pages {
        let path = dir.join(name);
        fs::write(&path, text)
            .map_err(|error| anyhow::anyhow!("cannot write {}: {error}", path.display()))
            .or_exit(Exit::CantCreate)?;
    }
    print(format!("{} pages in {}\n", pages.len(), dir.display()).as_bytes())
}

/// A page for the command itself and for each of its own, with their file names.
fn pages(command: clap::Command) -> Vec<(String, Vec<u8>)> {
    let own = command.get_subcommands().map(|sub| {
        let name = format!("{}-{}", command.get_name(), sub.get_name());
        (format!("{name}.1"), page(sub.clone().name(name)))
    });
    let mut pages: Vec<(String, Vec<u8>)> = own.collect();
    pages.push((format!("{}.1", command.get_name()), page(command)));
    pages
}

fn page(command: clap::Command) -> Vec<u8> {
    let mut text = Vec::new();
    let rendered = clap_mangen::Man::new(command).render(&mut text);
    rendered.expect("writing to memory does not fail");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_has_a_page_that_tells_its_flags() {
        let command = Cli::command().disable_help_subcommand(true);
        let names: Vec<String> = command
            .get_subcommands()
            .map(|sub| sub.get_name().to_owned())
            .collect();
        assert!(names.contains(&"drops".to_owned()), "{names:?}");
        let dir = tempfile::tempdir().unwrap();
        man(Some(dir.path())).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        for name in &names {
            let page = read(&format!("aksnet-agent-{name}.1"));
            assert!(page.contains(".SH NAME"), "{name}");
            assert!(page.contains(".SH SYNOPSIS"), "{name}");
        }
        assert!(read("aksnet-agent-drops.1").contains("\\-\\-recent"));
        assert!(read("aksnet-agent.1").contains("explain"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), names.len() + 1);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let failure = man(Some(Path::new("/nowhere/at/all"))).unwrap_err();
        assert_eq!(failure.exit, Exit::CantCreate);
        assert!(failure.to_string().contains("/nowhere/at/all"), "{failure}");
    }
}
