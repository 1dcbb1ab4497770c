//! Any file that `replay` is given, as a recorded session: what is read is written and read back as the same.

use aksnet_agent::session::{Line, read};

pub(crate) fn run(bytes: &[u8]) {
    let mut lines = Vec::new();
    let ended = read(bytes, |line| lines.push(line));
    if let Err(why) = ended {
        assert_eq!(why.lines().count(), 1, "{why}");
    }
    let mut text = String::new();
    for line in &lines {
        match line {
            Line::Flow(record) => assert_eq!(record.line().lines().count(), 1),
            Line::Drop(record) => assert_eq!(record.line().lines().count(), 1),
            Line::Session(_) | Line::Missed(_) | Line::End(_) => {}
        }
        text.push_str(&serde_json::to_string(line).expect("a line is JSON"));
        text.push('\n');
    }
    if lines.is_empty() {
        return;
    }
    let mut again = Vec::new();
    read(text.as_bytes(), |line| again.push(line)).expect("what was written is read");
    assert_eq!(again.len(), lines.len());
    for (was, is) in lines.iter().zip(&again) {
        match (was, is) {
            (Line::Drop(was), Line::Drop(is)) => assert_eq!(was, is),
            (Line::Missed(was), Line::Missed(is)) => assert_eq!(was, is),
            (Line::End(was), Line::End(is)) => assert_eq!(was, is),
            // These have numbers with a fraction, whose last digit may be another.
            (Line::Flow(was), Line::Flow(is)) => {
                assert_eq!((was.before, was.after), (is.before, is.after));
                assert_eq!((was.packets(), was.bytes()), (is.packets(), is.bytes()));
            }
            (Line::Session(was), Line::Session(is)) => assert_eq!(was.agent, is.agent),
            _ => panic!("{was:?} is read back as {is:?}"),
        }
    }
}
