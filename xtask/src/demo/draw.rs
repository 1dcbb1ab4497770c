//! Draws the cluster in text.

use crate::testbed::{Flavour, Node, Testbed, counters, masq};

/// What a packet from a pod passes on its way out.
fn chains(flavour: Flavour) -> [String; 3] {
    [
        "PREROUTING   KUBE-SERVICES → KUBE-SVC-* → DNAT".to_owned(),
        "FORWARD      KUBE-FORWARD, policy → DROP".to_owned(),
        format!(
            "POSTROUTING  KUBE-POSTROUTING, {} → SNAT",
            masq::chain(flavour)
        ),
    ]
}

/// The cluster, from the pods down to the world outside.
pub(super) fn cluster(bed: &Testbed) -> String {
    let (node, node2) = (bed.node(), bed.node2());
    let left = node_box(node, bed.plan().flavour.name(), &chains(bed.plan().flavour));
    let right = node_box(node2, "another node", &[]);
    let (left_width, right_width) = (width(&left), width(&right));
    let mut lines = side_by_side(&left, &right);
    let (a, b) = (left_width / 2, left_width + 3 + right_width / 2);
    lines.push(format!("{:a$}│{:gap$}│", "", "", gap = b - a - 1));
    let fabric = format!(
        " fabric {} · pod CIDRs routed to their nodes · {} to {} ",
        bed.plan().gateway,
        bed.plan().load_balancer.v4,
        node.name(),
    );
    lines.extend(boxed(&[fabric], left_width + 3 + right_width));
    lines.push(format!("{:a$}│{:gap$}│", "", "", gap = b - a - 1));
    let outside = format!("outside {}", bed.outside_ip());
    let vm = format!("vm {} · azure 168.63.129.16", bed.vm_ip());
    lines.push(format!(
        "{}{}",
        center(&outside, 2 * a + 1),
        center(&vm, 2 * (b - 2 * a - 1) + 1)
    ));
    let indented: Vec<String> = lines
        .iter()
        .map(|line| format!("  {}", line.trim_end()))
        .collect();
    indented.join("\n") + "\n"
}

/// A node as lines of equal width; `chains` are the rules on a packet's way, in its order.
fn node_box(node: &Node, title: &str, chains: &[String]) -> Vec<String> {
    let mut rows = vec![format!(" {} ({title}) ", node.name()), String::new()];
    for (at, pod) in node.pods().iter().enumerate() {
        let name = format!("{}/{}", pod.namespace(), pod.name());
        let ip = pod.ip().to_string();
        let joint = if at == 0 { '┐' } else { '┤' };
        rows.push(format!("  {name:<14} {ip:<12} ─ {} ─{joint} ", pod.veth()));
    }
    let width = rows.last().map_or(0, |row| row.chars().count());
    let hub = if counters::link(node.netns(), "cbr0").is_ok() {
        "cbr0"
    } else {
        "routes to"
    };
    let hub = format!("{hub} {} ─┘ ", node.plan().pods.v4);
    rows.push(format!("{hub:>width$}"));
    rows.push(String::new());
    rows.extend(chains.iter().map(|chain| format!("  {chain} ")));
    if !chains.is_empty() {
        rows.push(String::new());
    }
    rows.push(format!("  eth0 {} ", node.ip()));
    let width = rows
        .iter()
        .map(|row| row.chars().count())
        .max()
        .unwrap_or(0);
    boxed(&rows, width + 2)
}

/// Rows in a frame of this outer width.
fn boxed(rows: &[String], width: usize) -> Vec<String> {
    let inner = width - 2;
    let mut lines = vec![format!("┌{}┐", "─".repeat(inner))];
    lines.extend(rows.iter().map(|row| format!("│{row:<inner$}│")));
    lines.push(format!("└{}┘", "─".repeat(inner)));
    lines
}

/// Two boxes beside each other, the lower one padded at its top.
fn side_by_side(left: &[String], right: &[String]) -> Vec<String> {
    let height = left.len().max(right.len());
    let pad = |lines: &[String]| {
        let empty = " ".repeat(width(lines));
        let mut padded = vec![empty; height - lines.len()];
        padded.extend_from_slice(lines);
        padded
    };
    pad(left)
        .into_iter()
        .zip(pad(right))
        .map(|(left, right)| format!("{left}   {right}"))
        .collect()
}

fn width(lines: &[String]) -> usize {
    lines
        .iter()
        .map(|line| line.chars().count())
        .max()
        .unwrap_or(0)
}

fn center(text: &str, width: usize) -> String {
    format!("{text:^width$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_beside_each_other_stand_on_one_line() {
        let lines = side_by_side(
            &boxed(&["a".into(), "b".into()], 5),
            &boxed(&["c".into()], 6),
        );
        assert_eq!(lines[0], "┌───┐         ");
        assert_eq!(lines[3], "└───┘   └────┘");
    }
}
