//! The flags of the *settings*, and what they come to together with the environment and the file.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use crate::{
    config::{
        Effective, file,
        merge::{self, Given, Place},
        settings::{Arity, SETTINGS, Setting},
    },
    exit::{Exit, Failure, OrExit},
};

/// What the command line says about the settings, not read yet.
#[derive(Debug, Default)]
pub struct Settings {
    config: Option<PathBuf>,
    given: Vec<(&'static str, Vec<String>)>,
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let config = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .env("AKSNET_CONFIG")
            .hide_env(true)
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file with settings [env: AKSNET_CONFIG]");
        command.arg(config).args(SETTINGS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A setting's flag. Its value stays text: one reader serves flags, environment and file.
fn argument(setting: &Setting) -> Arg {
    let defaults = (setting.get)(&crate::config::Config::default()).join(",");
    let default = if defaults.is_empty() {
        String::new()
    } else {
        format!("[default: {defaults}] ")
    };
    let arg = Arg::new(setting.key)
        .long(setting.flag())
        .value_name(setting.value_name)
        .help_heading(setting.heading)
        .help(format!(
            "{} {default}[env: {}]",
            setting.help,
            setting.env()
        ));
    match setting.arity {
        Arity::One => arg.action(ArgAction::Set),
        Arity::Many => arg.action(ArgAction::Append),
        Arity::Switch => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
    }
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            config: matches.get_one("config").cloned(),
            given: SETTINGS
                .iter()
                .filter_map(|setting| {
                    let values = matches.get_many::<String>(setting.key)?;
                    Some((setting.key, values.cloned().collect()))
                })
                .collect(),
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Settings {
    /// The effective config: these flags over the environment over the file over the defaults.
    ///
    /// # Errors
    /// When the file cannot be read, or a value cannot be taken.
    pub fn effective(&self) -> Result<Effective, Failure> {
        let flags = self
            .given
            .iter()
            .filter_map(|(key, texts)| {
                let setting = crate::config::settings::by_key(key)?;
                Some(merge::given(setting, &Place::Flag, texts))
            })
            .collect();
        effective(self.config.as_deref(), flags)
    }
}

pub(super) fn captured(mut effective: Effective, capture: bool) -> Effective {
    effective.config.capture |= capture;
    effective
}

pub(super) fn with_socket(
    config: Option<&Path>,
    socket: Option<&Path>,
) -> Result<Effective, Failure> {
    let socket = socket.into_iter().filter_map(|path| {
        let setting = crate::config::settings::by_key("socket")?;
        Some(merge::given(
            setting,
            &Place::Flag,
            &[path.display().to_string()],
        ))
    });
    let mut effective = effective(config, socket.collect())?;
    // What looks for a while sends nothing: the agent does.
    effective.config.otlp_endpoint.clear();
    Ok(effective)
}

fn effective(config: Option<&Path>, flags: Vec<Given>) -> Result<Effective, Failure> {
    let file = match config {
        None => Vec::new(),
        Some(path) => {
            let name = path.display().to_string();
            let text = std::fs::read_to_string(path).map_err(|e| {
                Failure::new(
                    Exit::NoInput,
                    format_args!("cannot read the config file {name}: {e}"),
                )
            })?;
            file::read(&name, &text).or_exit(Exit::Config)?
        }
    };
    let env = merge::from_env(|name| std::env::var(name).ok());
    merge::merge(vec![file, env, flags]).map_err(|error| {
        let exit = match error.place {
            Place::File { .. } => Exit::Config,
            Place::Flag | Place::Env => Exit::Usage,
        };
        Failure {
            exit,
            error: error.into(),
        }
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::{Action, Cli};

    fn run(args: &[&str]) -> Effective {
        let args = ["aksnet-agent", "run"].iter().chain(args);
        match Cli::try_parse_from(args).unwrap().command {
            Some(Action::Run(settings)) => settings.effective().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_setting_is_a_flag_a_key_and_a_variable_and_nothing_else_is() {
        let command = Cli::command();
        let run = command.find_subcommand("run").unwrap();
        let mut flags: Vec<&str> = run
            .get_arguments()
            .filter_map(Arg::get_long)
            .filter(|f| !["config", "help"].contains(f))
            .collect();
        flags.sort_unstable();
        let mut keys: Vec<String> = SETTINGS.iter().map(Setting::flag).collect();
        keys.sort_unstable();
        assert_eq!(flags, keys);
        for setting in SETTINGS {
            assert_eq!(
                setting.env(),
                format!("AKSNET_{}", setting.key.to_uppercase())
            );
            let value = "x".to_owned();
            let found = merge::from_env(|name| (name == setting.env()).then(|| value.clone()));
            assert_eq!(found.len(), 1);
            assert_eq!(found[0].setting.key, setting.key);
            let read = file::read("f", &format!("{} = 'x'", setting.key)).unwrap();
            assert_eq!(read[0].setting.key, setting.key);
        }
    }

    #[test]
    fn lists_are_repeated_or_separated_by_commas() {
        let config = run(&["--uplink", "eth0", "--uplink=eth1,eth2"]).config;
        assert_eq!(config.uplink, ["eth0", "eth1", "eth2"]);
    }

    #[test]
    fn a_switch_needs_no_value() {
        assert!(run(&["--bpf-stats", "--sample", "1"]).config.bpf_stats);
        assert!(!run(&["--bpf-stats=false"]).config.bpf_stats);
    }

    #[test]
    fn bad_values_exit_by_where_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "sampel = 4\n").unwrap();
        let settings = Settings {
            config: Some(path.clone()),
            given: vec![],
        };
        let failure = settings.effective().unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(
            failure
                .to_string()
                .ends_with("agent.toml:1: unknown key 'sampel'; did you mean 'sample'?")
        );
        std::fs::write(&path, "").unwrap();
        let settings = Settings {
            config: Some(path),
            given: vec![("sample", vec!["5".into()])],
        };
        assert_eq!(settings.effective().unwrap_err().exit, Exit::Usage);
        let settings = Settings {
            config: Some(dir.path().join("none.toml")),
            given: vec![],
        };
        assert_eq!(settings.effective().unwrap_err().exit, Exit::NoInput);
    }
}
