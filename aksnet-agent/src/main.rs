//! `aksnet-agent`: reads the command line, does what it says, ends with the exit code of what happened.

use std::{io::IsTerminal as _, process::ExitCode};

use aksnet_agent::{
    cli::{self, Action, Cli, REVISION, VERSION},
    commands,
    config::{Config, Effective, Origin, merge},
    doctor::Severity,
    exit::{self, Exit, Failure},
    logging,
    policy::evaluate::Outcome,
    preflight, wiring,
};
use clap::{CommandFactory, Parser};

fn main() -> ExitCode {
    preflight::raise();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // --help is no failure.
            if !error.use_stderr() {
                let _closed = error.print();
                return ExitCode::SUCCESS;
            }
            eprintln!("aksnet-agent: {}", cli::in_one_line(&error.to_string()));
            return Exit::Usage.code().into();
        }
    };
    match act(cli) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("aksnet-agent: {failure}");
            failure.exit.code().into()
        }
    }
}

fn act(cli: Cli) -> Result<ExitCode, Failure> {
    if cli.version {
        commands::print(format!("aksnet-agent {VERSION} ({REVISION})\n").as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    match cli.command {
        None => {
            eprint!("{}", Cli::command().render_help());
            Err(Failure::new(
                Exit::Usage,
                "no command given; try `aksnet-agent run --help`",
            ))
        }
        Some(Action::Config(settings)) => {
            commands::print(settings.effective()?.to_toml().as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Run(settings)) => {
            let effective = settings.effective()?;
            logging::init(&effective.config);
            warn_of_unknown_variables();
            preflight::check_for(&effective.config)?;
            commands::runtime()?.block_on(commands::run::run(&effective, wiring::load))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Completions(args)) => {
            commands::manual::completions(args.shell)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Man(args)) => {
            commands::manual::man(args.dir.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Top(args)) => {
            let effective = args.effective()?;
            if args.prints(
                std::io::stdout().is_terminal(),
                std::env::var_os("TERM").as_deref(),
            ) {
                log_errors(&effective);
                commands::top::top(&args, &effective, wiring::rows_text, wiring::load)?;
            } else {
                if !std::io::stderr().is_terminal() {
                    // On the screen itself words would be in the way; what matters of them is shown there.
                    log_errors(&effective);
                }
                commands::screen::screen(&args, &effective, wiring::load)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Drops(args)) => {
            let effective = args.effective()?;
            log_errors(&effective);
            commands::drops::drops(&args, &effective, wiring::load)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Flows(args)) => {
            let effective = args.source.effective()?;
            log_errors(&effective);
            commands::flows::flows(&args, &effective, wiring::load)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Record(args)) => {
            let effective = args.source.effective()?;
            log_errors(&effective);
            commands::record::record(&args, &effective, wiring::load)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Replay(args)) => {
            let effective = args.settings.effective()?;
            commands::replay::replay(&args, &effective.config)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Action::Doctor(args)) => doctor(&args),
        Some(Action::Explain(args)) => Ok(match commands::explain::explain(&args)? {
            Outcome::Allowed => ExitCode::SUCCESS,
            Outcome::Denied => exit::DENIED.into(),
            Outcome::Undetermined => exit::UNDETERMINED.into(),
        }),
    }
}

fn doctor(args: &cli::Doctor) -> Result<ExitCode, Failure> {
    if args.list {
        commands::doctor::list()?;
        return Ok(ExitCode::SUCCESS);
    }
    let evidence = if let Some(path) = &args.evidence {
        commands::doctor::read(path)?
    } else {
        let effective = args.effective()?;
        log_errors(&effective);
        commands::doctor::ask(args.watch_for, &effective, wiring::load)?
    };
    Ok(match commands::doctor::judge(args, &evidence)? {
        Severity::Ok | Severity::Unknown | Severity::Info => ExitCode::SUCCESS,
        Severity::Warning => exit::WARNING.into(),
        Severity::Critical => exit::CRITICAL.into(),
    })
}

/// The terminal is for rows; what the agent has to say is in the way unless asked for.
fn log_errors(effective: &Effective) {
    let log = match effective.origin("log") {
        Origin::Default => "error".to_owned(),
        Origin::Given(_) => effective.config.log.clone(),
    };
    logging::init(&Config {
        log,
        ..effective.config.clone()
    });
}

fn warn_of_unknown_variables() {
    let names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .collect();
    for message in merge::unknown_env(names.iter().map(String::as_str)) {
        tracing::warn!("{message}");
    }
}
