//! A report as people read it in a terminal: the worst first, what is well in one line.

use std::fmt::Write as _;

use super::{
    checks::ago,
    evidence::{Evidence, Fact},
    finding::{Finding, Report, Severity},
};

/// Lines are no longer, whatever the terminal's width.
pub const WIDTH: usize = 100;
/// Lines are no shorter, whatever the terminal's width.
const NARROW: usize = 40;
/// Where a finding's text begins.
const INDENT: usize = 10;
/// Where pages are that a report names.
const PAGES: &str = "https://github.com/aksnet/aksnet/blob/main/";

/// How to write it.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Columns.
    pub width: usize,
    /// Whether severities are coloured.
    pub colour: bool,
}

/// Writes a report.
#[must_use]
pub fn render(report: &Report, evidence: &Evidence, style: Style) -> String {
    let width = style.width.clamp(NARROW, WIDTH);
    let mut text = String::new();
    for line in wrap(&header(report, evidence), width) {
        text.push_str(&line);
        text.push('\n');
    }
    for finding in &report.findings {
        if finding.severity >= Severity::Info {
            text.push('\n');
            write_finding(&mut text, finding, width, style.colour);
        }
    }
    let unknown: Vec<&Finding> = of(report, Severity::Unknown).collect();
    if !unknown.is_empty() {
        text.push('\n');
        text.push_str(&painted(Severity::Unknown, "NOT JUDGED", style.colour));
        text.push('\n');
        for finding in unknown {
            let line = format!("{}: {}", finding.check, finding.title);
            write_hanging(&mut text, "  ", 4, &line, width);
            for because in &finding.evidence {
                write_hanging(&mut text, "    ", 6, because, width);
            }
            if !finding.fix.is_empty() {
                write_hanging(&mut text, "    → ", 6, &finding.fix, width);
            }
        }
    }
    let mut ok: Vec<&str> = of(report, Severity::Ok)
        .map(|finding| finding.check.as_str())
        .collect();
    ok.dedup();
    // A check with something to say is listed above.
    ok.retain(|check| {
        !report
            .findings
            .iter()
            .any(|f| f.severity > Severity::Ok && f.check == *check)
    });
    if !ok.is_empty() {
        text.push('\n');
        text.push_str(&painted(Severity::Ok, "OK", style.colour));
        text.push('\n');
        write_hanging(&mut text, "  ", 2, &ok.join(", "), width);
    }
    text.push('\n');
    text.push_str(&summary(report));
    text.push('\n');
    text
}

fn of(report: &Report, severity: Severity) -> impl Iterator<Item = &Finding> {
    report
        .findings
        .iter()
        .filter(move |finding| finding.severity == severity)
}

fn header(report: &Report, evidence: &Evidence) -> String {
    let told = |fact: &Fact| match fact.value.as_deref() {
        None => "not known".to_owned(),
        Some("") => "none".to_owned(),
        Some(value) => value.to_owned(),
    };
    let node = &evidence.node;
    format!(
        "Node {}: CNI {}, policy engine {}, kube-proxy {}, zone {}, kernel {}. Watched for the last {}.",
        report.node,
        told(&node.cni),
        told(&node.policy_engine),
        told(&node.proxy_mode),
        told(&node.zone),
        if node.kernel.is_empty() {
            "not known"
        } else {
            &node.kernel
        },
        ago(report.window_s),
    )
}

fn write_finding(text: &mut String, finding: &Finding, width: usize, colour: bool) {
    let name = finding.severity.name().to_uppercase();
    let head = format!("{} [{}]", finding.title, finding.check);
    let pad = INDENT.saturating_sub(name.len());
    let first = format!(
        "{}{}",
        painted(finding.severity, &name, colour),
        " ".repeat(pad)
    );
    write_hanging(text, &first, INDENT, &head, width);
    for line in &finding.evidence {
        let deeper = if line.starts_with("  ") {
            INDENT + 4
        } else {
            INDENT + 2
        };
        let bullet = if line.starts_with("  ") { "  " } else { "- " };
        let first = format!("{}{bullet}", " ".repeat(deeper - 2));
        write_hanging(text, &first, deeper, line.trim_start(), width);
    }
    for (label, line) in [
        ("fix: ", finding.fix.clone()),
        ("more: ", page(&finding.runbook)),
    ] {
        if !line.is_empty() {
            let first = format!("{}{label}", " ".repeat(INDENT));
            write_hanging(text, &first, INDENT + 2, &line, width);
        }
    }
}

fn page(runbook: &str) -> String {
    if runbook.is_empty() {
        String::new()
    } else {
        format!("{PAGES}{runbook}")
    }
}

fn summary(report: &Report) -> String {
    let mut parts = Vec::new();
    for severity in Severity::ALL.into_iter().rev() {
        let n = report.count(severity);
        if n > 0 {
            let name = match severity {
                Severity::Unknown => "not judged",
                Severity::Warning if n > 1 => "warnings",
                other => other.name(),
            };
            parts.push(format!("{n} {name}"));
        }
    }
    parts.join(", ")
}

fn painted(severity: Severity, text: &str, colour: bool) -> String {
    if !colour {
        return text.to_owned();
    }
    let code = match severity {
        Severity::Critical => "1;31",
        Severity::Warning => "1;33",
        Severity::Info => "1;36",
        Severity::Unknown => "1;35",
        Severity::Ok => "1;32",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Writes a text with `first` before its first line, and so many blanks before each other.
fn write_hanging(text: &mut String, first: &str, indent: usize, line: &str, width: usize) {
    // Colour codes take no columns, and stand only before a first line that is as wide as the others.
    let lead = if first.contains('\x1b') {
        indent
    } else {
        first.chars().count()
    };
    let room = width.saturating_sub(lead.max(indent)).max(20);
    for (n, part) in wrap(line, room).into_iter().enumerate() {
        if n == 0 {
            let _ = writeln!(text, "{first}{part}");
        } else {
            let _ = writeln!(text, "{}{part}", " ".repeat(indent));
        }
    }
}

/// Breaks a text between words. A word that is longer than a line stays whole: it may be an address to copy. What would
/// steer the terminal does not: evidence may be anybody's file, and errors in it have foreign words.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let words = text.split(|c: char| c == ' ' || c.is_control());
    for word in words.filter(|word| !word.is_empty()) {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, check: &str, title: &str) -> Finding {
        Finding {
            check: check.to_owned(),
            runbook: "docs/runbooks/nat.md".to_owned(),
            ..Finding::new(severity, title)
        }
    }

    fn shown(width: usize, colour: bool) -> String {
        let evidence = Evidence {
            window_s: 300.0,
            ..Evidence::default()
        };
        let findings = vec![
            finding(Severity::Ok, "agent", "all is well"),
            finding(Severity::Unknown, "cross-zone", "the zone is not known"),
            finding(
                Severity::Critical,
                "pod-ips",
                "no address is left for another pod on this node",
            )
            .because("host_local: 253 of 253 in use (100 %)")
            .fix("Move pods elsewhere."),
        ];
        render(
            &Report::new(&evidence, findings),
            &evidence,
            Style { width, colour },
        )
    }

    #[test]
    fn the_worst_comes_first_and_what_is_well_last() {
        let text = shown(100, false);
        let at = |part: &str| {
            text.find(part)
                .unwrap_or_else(|| panic!("{part} in\n{text}"))
        };
        let order = [
            "CRITICAL  no address is left for another pod on this node [pod-ips]",
            "          - host_local: 253 of 253 in use (100 %)",
            "          fix: Move pods elsewhere.",
            "          more: https://",
            "NOT JUDGED\n  cross-zone: the zone is not known",
            "OK\n  agent\n",
            "1 critical, 1 not judged, 1 ok\n",
        ];
        assert!(order.map(at).is_sorted(), "{text}");
        assert!(!text.contains('\x1b'));
        assert!(shown(100, true).contains("\x1b[1;31mCRITICAL\x1b[0m  no address"));
    }

    #[test]
    fn foreign_text_does_not_steer_the_terminal() {
        let mut evidence = Evidence::default();
        evidence.node.kernel = "6.8\x1b]0;title\x07".to_owned();
        let finding = finding(Severity::Warning, "agent", "not\x1b[2J ready")
            .because("an answer\r\nof two lines\u{9b}31m");
        let style = Style {
            width: 100,
            colour: false,
        };
        let text = render(&Report::new(&evidence, vec![finding]), &evidence, style);
        let steers = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(steers), "{text:?}");
        assert!(text.contains("- an answer of two lines 31m\n"), "{text}");
    }

    #[test]
    fn lines_fit_the_terminal_but_for_what_is_to_be_copied() {
        for width in [20, 40, 60, 80, 100, 200] {
            for line in shown(width, false).lines() {
                let fits = line.chars().count() <= width.clamp(NARROW, WIDTH);
                assert!(fits || line.contains("https://"), "{width}: {line}");
            }
        }
    }
}
