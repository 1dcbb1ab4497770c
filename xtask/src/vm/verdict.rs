//! A *verdict* is what a guest says of its tests: which programs it ran, each test's result, and that it came to its
//! end. What is not said was not passed.

use std::time::Duration;

/// What the guest's lines about itself begin with; no test prints it.
pub const MARK: &str = "@@aksnet-vm ";

/// What one program of tests said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Its name in [`super::work`].
    pub name: String,
    /// Names of tests that passed.
    pub passed: Vec<String>,
    /// Names of tests that failed.
    pub failed: Vec<String>,
    /// What it said that it left out, without the word itself.
    pub skipped: Vec<String>,
    /// Its exit code and how long it took; `None` while it runs.
    pub ended: Option<(i32, Duration)>,
    /// What it printed of its failures.
    pub output: Vec<String>,
}

/// All that a guest said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What `uname -r` says there.
    pub release: Option<String>,
    /// Its programs, in the order in which they ran.
    pub programs: Vec<Program>,
    /// Why it could not begin, or go on.
    pub trouble: Vec<String>,
    /// Whether it came to its end.
    pub finished: bool,
}

impl Verdict {
    /// Takes a line that the guest said.
    pub fn hear(&mut self, line: &str) {
        let line = line.trim_end_matches(['\r', '\n']);
        // What a test prints without an end of line stands before it.
        if let Some(at) = line.find(MARK) {
            self.mark(&line[at + MARK.len()..]);
        } else if let Some(program) = self.programs.last_mut().filter(|p| p.ended.is_none()) {
            program.hear(line);
        }
    }

    fn mark(&mut self, said: &str) {
        let mut words = said.split(' ');
        match (words.next(), words.next()) {
            (Some("kernel"), Some(release)) => self.release = Some(release.to_owned()),
            (Some("begin"), Some(name)) => self.programs.push(Program {
                name: name.to_owned(),
                ..Program::default()
            }),
            (Some("end"), Some(name)) => {
                let code = words.next().and_then(|code| code.parse().ok());
                let took = words.next().and_then(|took| took.parse().ok());
                let program = self.programs.iter_mut().rfind(|p| p.name == name);
                if let (Some(program), Some(code), Some(took)) = (program, code, took) {
                    program.ended = Some((code, Duration::from_secs(took)));
                } else {
                    self.trouble.push(format!("not understood: {said}"));
                }
            }
            (Some("done"), None) => self.finished = true,
            (Some("trouble"), Some(_)) => {
                self.trouble.push(said["trouble ".len()..].to_owned());
            }
            _ => self.trouble.push(format!("not understood: {said}")),
        }
    }

    /// Everything that is wrong, given how many programs were to run: a line each, with what they printed after it.
    #[must_use]
    pub fn failures(&self, programs: usize) -> Vec<String> {
        let mut wrong = self.trouble.clone();
        for program in &self.programs {
            let name = &program.name;
            for test in &program.failed {
                wrong.push(format!("{name}: {test} failed"));
            }
            match program.ended {
                None => wrong.push(format!("{name}: did not end")),
                Some((0, _)) if program.passed.is_empty() => {
                    wrong.push(format!("{name}: ran no test"));
                }
                Some((0, _)) => {}
                Some((code, _)) if program.failed.is_empty() => {
                    wrong.push(format!(
                        "{name}: exit code {code}, with no test that failed"
                    ));
                }
                Some(_) => {}
            }
        }
        if self.programs.len() != programs {
            wrong.push(format!(
                "{} of {programs} programs ran",
                self.programs.len()
            ));
        }
        if !self.finished {
            wrong.push("the guest did not come to its end".to_owned());
        }
        wrong
    }
}

impl Program {
    fn hear(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test ") {
            // A name and what became of it. `should panic` and times may follow the name.
            if let Some((name, result)) = rest.rsplit_once(" ... ") {
                let name = name.split(' ').next().unwrap_or(name).to_owned();
                if result.starts_with("ok") {
                    self.passed.push(name);
                    return;
                }
                if result.starts_with("FAILED") {
                    self.failed.push(name);
                    return;
                }
            }
        }
        if let Some(what) = line.strip_prefix("skipped: ") {
            self.skipped.push(what.to_owned());
        }
        self.output.push(line.to_owned());
    }

    /// What it printed under `failures:`, or all that it printed where it did not come so far.
    #[must_use]
    pub fn failure_output(&self) -> &[String] {
        let from = self.output.iter().position(|line| line == "failures:");
        &self.output[from.unwrap_or(0)..]
    }
}

/// Whether a line is one that a person who waits wants to see: a test's result, or the guest's own.
#[must_use]
pub fn is_news(line: &str) -> bool {
    line.contains(MARK) || line.starts_with("test ") && line.contains(" ... ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &str) -> Verdict {
        let mut verdict = Verdict::default();
        lines.lines().for_each(|line| verdict.hear(line));
        verdict
    }

    const GOOD: &str = "noise\r
@@aksnet-vm kernel 6.1.0-56-amd64
@@aksnet-vm begin programs
running 2 tests
test headers::a ... ok
test headers::b - should panic ... ok
skipped: no module sch_netem
@@aksnet-vm end programs 0 12
@@aksnet-vm done\r";

    #[test]
    fn a_guest_whose_tests_pass_has_no_failures() {
        let verdict = heard(GOOD);
        assert_eq!(verdict.release.as_deref(), Some("6.1.0-56-amd64"));
        let program = &verdict.programs[0];
        assert_eq!(program.passed, ["headers::a", "headers::b"]);
        assert_eq!(program.skipped, ["no module sch_netem"]);
        assert_eq!(program.ended, Some((0, Duration::from_secs(12))));
        assert_eq!(verdict.failures(1), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_a_failure() {
        assert_eq!(heard(GOOD).failures(2), ["1 of 2 programs ran"]);
        let cut = GOOD.replace("@@aksnet-vm done", "");
        assert_eq!(
            heard(&cut).failures(1),
            ["the guest did not come to its end"]
        );
        let silent = GOOD.replace(" ... ok", "");
        assert_eq!(heard(&silent).failures(1), ["programs: ran no test"]);
        let hung = heard("@@aksnet-vm begin programs\ntest a ... ok");
        assert!(
            hung.failures(1)
                .contains(&"programs: did not end".to_owned())
        );
        assert!(!heard("").failures(1).is_empty());
    }

    #[test]
    fn all_failures_are_told_with_what_they_printed() {
        let verdict = heard(
            "@@aksnet-vm begin agent\ntest a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n---- a stdout ----\nwhy\n\
             @@aksnet-vm end agent 101 3\n@@aksnet-vm begin programs\nSegmentation fault\n@@aksnet-vm end programs 139 1\n\
             @@aksnet-vm trouble no module 9p\n@@aksnet-vm done",
        );
        assert_eq!(
            verdict.failures(2),
            [
                "no module 9p",
                "agent: a failed",
                "agent: b failed",
                "programs: exit code 139, with no test that failed"
            ]
        );
        assert!(
            verdict.programs[0]
                .failure_output()
                .contains(&"why".to_owned())
        );
    }

    #[test]
    fn a_mark_after_output_without_an_end_of_line_is_heard() {
        let verdict = heard("@@aksnet-vm begin x\ntest a ... ok\nno end@@aksnet-vm end x 0 1");
        assert_eq!(verdict.programs[0].ended, Some((0, Duration::from_secs(1))));
    }
}
