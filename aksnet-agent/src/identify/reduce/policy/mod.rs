//! Network policies.
//!
//! Defaults are those of `networking/v1/types.go` and of kubernetes `pkg/apis/networking/v1/defaults.go`. What the API
//! refuses (`pkg/apis/networking/validation`) may stand in a manifest or come from an aggregated server: it matches
//! nothing, and says why, so that an item that nobody can read never allows more than its author meant. Where it is not
//! even known which pods or which direction is meant, the policy is of no pod and of no direction.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::{
    About, Context, Metadata, Pairs, Raw,
    field::{Either, Field, shape},
};
use crate::{
    identify::object::{Kind, Object, Text},
    policy::model::{
        NetworkPolicy, Operator, Peers, Port, Ports, Requirement, Rule, Selector, Side,
    },
};

shape! {
    RawPolicy {
        metadata: Metadata = "metadata",
        spec: Spec = "spec",
    }
}

shape! {
    Spec {
        pods: RawSelector = "podSelector",
        types: Vec<Field<String>> = "policyTypes",
        ingress: Vec<Field<RawRule>> = "ingress",
        egress: Vec<Field<RawRule>> = "egress",
    }
}

shape! {
    RawRule {
        from: Vec<Field<RawPeer>> = "from",
        to: Vec<Field<RawPeer>> = "to",
        ports: Vec<Field<RawPort>> = "ports",
    }
}

shape! {
    RawPeer {
        pods: RawSelector = "podSelector",
        namespaces: RawSelector = "namespaceSelector",
        block: RawBlock = "ipBlock",
    }
}

shape! {
    RawBlock {
        cidr: String = "cidr",
        except: Vec<Field<String>> = "except",
    }
}

shape! {
    RawPort {
        protocol: String = "protocol",
        port: Either = "port",
        end: u64 = "endPort",
    }
}

shape! {
    RawSelector {
        labels: Pairs = "matchLabels",
        expressions: Vec<Field<Expression>> = "matchExpressions",
    }
}

shape! {
    Expression {
        key: String = "key",
        operator: String = "operator",
        values: Vec<Field<String>> = "values",
    }
}

/// The names of the fields of one direction, for what is odd there.
struct Names {
    rules: &'static str,
    peers: &'static str,
    /// What the other direction calls its peers.
    astray: &'static str,
    ports: &'static str,
}

const INGRESS: Names = Names {
    rules: "spec.ingress",
    peers: "spec.ingress.from",
    astray: "spec.ingress.to",
    ports: "spec.ingress.ports",
};

const EGRESS: Names = Names {
    rules: "spec.egress",
    peers: "spec.egress.to",
    astray: "spec.egress.from",
    ports: "spec.egress.ports",
};

/// The longest foreign text that a reason quotes, in characters.
const QUOTED: usize = 64;

fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    format!("'{short}'")
}

impl Raw for RawPolicy {
    fn metadata(&mut self) -> Field<Metadata> {
        std::mem::take(&mut self.metadata)
    }

    fn reduce(self, _: Kind, about: About, context: &mut Context<'_>) -> Object {
        let unreadable = matches!(self.spec, Field::Odd);
        let spec = self.spec.take("spec", context.odd).unwrap_or_default();
        let (ingress, egress) = directions(&spec, context);
        let pods = match spec.pods {
            _ if unreadable => Some(nothing()),
            pods => context.selector(pods, "spec.podSelector"),
        };
        let isolates = |side: bool| side && !unreadable;
        let ingress =
            isolates(ingress).then(|| context.rules(Side::Ingress, spec.ingress, &INGRESS));
        let egress = isolates(egress).then(|| context.rules(Side::Egress, spec.egress, &EGRESS));
        Object::Policy(NetworkPolicy {
            namespace: about.namespace,
            name: about.name,
            pods: pods.unwrap_or_default(),
            ingress,
            egress,
        })
    }
}

/// Whether a policy is about ingress, and about egress.
fn directions(spec: &Spec, context: &mut Context<'_>) -> (bool, bool) {
    let name = "spec.policyTypes";
    let types = match &spec.types {
        Field::Good(types) => types.as_slice(),
        Field::Absent => &[],
        Field::Odd => {
            context.odd.push(name);
            return (false, false);
        }
    };
    if types.is_empty() {
        let some = match &spec.egress {
            Field::Good(rules) => !rules.is_empty(),
            // Rules were meant; that they cannot be read is said where they are.
            Field::Odd => true,
            Field::Absent => false,
        };
        return (true, some);
    }
    let says = |wanted: &str| {
        let mut all = types.iter();
        all.any(|one| matches!(one, Field::Good(one) if one == wanted))
    };
    let known = |one: &Field<String>| matches!(one, Field::Good(one) if one == "Ingress" || one == "Egress");
    if !types.iter().all(known) {
        context.odd.push(name);
    }
    (says("Ingress"), says("Egress"))
}

/// The selector of something that cannot be read: it matches nothing.
fn nothing() -> Selector {
    Selector(Box::new([Requirement {
        key: Text::default(),
        operator: Operator::Unknown,
        values: Box::default(),
    }]))
}

impl Context<'_> {
    fn why(&mut self, why: &str) -> Text {
        self.symbols.text(why)
    }

    fn nobody(&mut self, name: &'static str, why: &str) -> Peers {
        self.odd.push(name);
        Peers::Nobody(self.why(why))
    }

    /// A rule that matches nothing.
    fn no_rule(&mut self, name: &'static str, why: &str) -> Rule {
        Rule {
            peers: Box::new([self.nobody(name, why)]),
            ports: Box::default(),
        }
    }

    fn rules(
        &mut self,
        side: Side,
        field: Field<Vec<Field<RawRule>>>,
        names: &Names,
    ) -> Box<[Rule]> {
        let rules = match field {
            Field::Absent => return Box::default(),
            Field::Odd => return Box::new([self.no_rule(names.rules, "the rules are no list")]),
            Field::Good(rules) => rules,
        };
        let rules = rules.into_iter().map(|rule| match rule {
            Field::Good(rule) => self.rule(side, rule, names),
            Field::Absent | Field::Odd => self.no_rule(names.rules, "the rule is no object"),
        });
        rules.collect()
    }

    fn rule(&mut self, side: Side, rule: RawRule, names: &Names) -> Rule {
        let (peers, astray) = match side {
            Side::Ingress => (rule.from, rule.to),
            Side::Egress => (rule.to, rule.from),
        };
        let peers: Box<[Peers]> = match peers {
            // An API server leaves it out, or refuses the whole; here it must not pass for a rule for anybody.
            Field::Absent if !matches!(astray, Field::Absent) => {
                let why = match side {
                    Side::Ingress => "an ingress rule has 'from', not 'to'",
                    Side::Egress => "an egress rule has 'to', not 'from'",
                };
                Box::new([self.nobody(names.astray, why)])
            }
            Field::Absent => Box::default(),
            Field::Odd => Box::new([self.nobody(names.peers, "the peers are no list")]),
            Field::Good(peers) => peers
                .into_iter()
                .map(|peer| match peer {
                    Field::Good(peer) => self.peer(peer, names.peers),
                    Field::Absent | Field::Odd => self.nobody(names.peers, "it is no object"),
                })
                .collect(),
        };
        let ports: Box<[Ports]> = match rule.ports {
            Field::Absent => Box::default(),
            Field::Odd => Box::new([self.no_port(names.ports, "the ports are no list")]),
            Field::Good(ports) => ports
                .into_iter()
                .map(|port| match port {
                    Field::Good(port) => self.one_port(port, names.ports),
                    Field::Absent | Field::Odd => self.no_port(names.ports, "it is no object"),
                })
                .collect(),
        };
        Rule { peers, ports }
    }

    fn peer(&mut self, peer: RawPeer, name: &'static str) -> Peers {
        let selects = !matches!(
            (&peer.pods, &peer.namespaces),
            (Field::Absent, Field::Absent)
        );
        match peer.block {
            Field::Absent => {}
            _ if selects => {
                return self.nobody(
                    name,
                    "it has an ipBlock and a selector; only one is allowed",
                );
            }
            Field::Good(block) => return self.block(block, name),
            Field::Odd => return self.nobody(name, "its ipBlock is no object"),
        }
        if !selects {
            return self.nobody(name, "it says nothing: no selector and no ipBlock");
        }
        if matches!(peer.pods, Field::Odd) {
            return self.nobody(name, "its podSelector is no object");
        }
        if matches!(peer.namespaces, Field::Odd) {
            return self.nobody(name, "its namespaceSelector is no object");
        }
        Peers::Pods {
            namespaces: self.selector(peer.namespaces, name),
            pods: self.selector(peer.pods, name),
        }
    }

    fn block(&mut self, block: RawBlock, name: &'static str) -> Peers {
        let cidr = match block.cidr {
            Field::Good(cidr) => cidr,
            Field::Absent | Field::Odd => return self.nobody(name, "its ipBlock has no cidr"),
        };
        let Ok(range) = cidr.parse::<IpNet>() else {
            let why = format!("its cidr {} is no range of addresses", quoted(&cidr));
            return self.nobody(name, &why);
        };
        let listed = match block.except {
            Field::Absent => Vec::new(),
            Field::Good(listed) => listed,
            Field::Odd => return self.nobody(name, "its except is no list"),
        };
        let mut except = Vec::with_capacity(listed.len());
        for one in listed {
            let Field::Good(text) = one else {
                return self.nobody(name, "an entry of its except is no text");
            };
            // Without it the block would match what its author took out.
            let Ok(range) = text.parse::<IpNet>() else {
                let why = format!(
                    "the entry {} of its except is no range of addresses",
                    quoted(&text)
                );
                return self.nobody(name, &why);
            };
            except.push(range.trunc());
        }
        Peers::Block {
            cidr: range.trunc(),
            except: except.into(),
        }
    }

    fn no_port(&mut self, name: &'static str, why: &str) -> Ports {
        self.odd.push(name);
        Ports {
            // No flow has it; but it matches none anyway.
            protocol: 0,
            port: Port::Nothing(self.why(why)),
        }
    }

    fn one_port(&mut self, port: RawPort, name: &'static str) -> Ports {
        // Not as a container's protocol: the empty one is refused.
        let protocol = match &port.protocol {
            Field::Absent => 6,
            Field::Good(text) => match text.as_str() {
                "TCP" => 6,
                "UDP" => 17,
                "SCTP" => 132,
                _ => {
                    let why = format!("its protocol {} is unknown", quoted(text));
                    return self.no_port(name, &why);
                }
            },
            Field::Odd => return self.no_port(name, "its protocol is no text"),
        };
        match self.numbers(port.port, &port.end) {
            Ok(port) => Ports { protocol, port },
            Err(why) => Ports {
                protocol,
                ..self.no_port(name, &why)
            },
        }
    }

    fn numbers(&mut self, port: Field<Either>, end: &Field<u64>) -> Result<Port, String> {
        let valid = |number: u64| u16::try_from(number).ok().filter(|port| *port != 0);
        let first = match port {
            Field::Odd => return Err("its port is no port number and no name".to_owned()),
            Field::Absent => return no_end(end, "without a port").map(|()| Port::Any),
            Field::Good(Either::Text(text)) if text.is_empty() => {
                return Err("its port is an empty name".to_owned());
            }
            Field::Good(Either::Text(text)) => {
                no_end(end, "with a port that is a name")?;
                return Ok(Port::Name(self.symbols.text(&text)));
            }
            Field::Good(Either::Number(number)) => valid(number)
                .ok_or_else(|| format!("its port {number} is not between 1 and 65535"))?,
        };
        let last = match end {
            Field::Absent => first,
            Field::Odd => return Err("its endPort is no port number".to_owned()),
            Field::Good(number) => valid(*number)
                .ok_or_else(|| format!("its endPort {number} is not between 1 and 65535"))?,
        };
        if last < first {
            return Err(format!("its endPort {last} is below its port {first}"));
        }
        Ok(Port::Range(first, last))
    }

    /// None where there is none.
    fn selector(&mut self, field: Field<RawSelector>, name: &'static str) -> Option<Selector> {
        let raw = match field {
            Field::Absent => return None,
            Field::Odd => {
                self.odd.push(name);
                return Some(nothing());
            }
            Field::Good(raw) => raw,
        };
        let mut all = Vec::new();
        if matches!(raw.labels, Field::Odd) || matches!(raw.expressions, Field::Odd) {
            self.odd.push(name);
            all.extend(nothing().0);
        }
        if let Field::Good(Pairs(pairs)) = raw.labels {
            // Of a key that stands there twice the last one counts, as in Go.
            let pairs: BTreeMap<String, Field<String>> = pairs.into_iter().collect();
            for (key, value) in pairs {
                let value = self.values(vec![value]);
                all.push(self.requirement(&key, Operator::In, value, name));
            }
        }
        if let Field::Good(expressions) = raw.expressions {
            for one in expressions {
                let one = match one {
                    Field::Good(one) => one,
                    Field::Absent | Field::Odd => Expression::default(),
                };
                all.push(self.expression(one, name));
            }
        }
        Some(Selector(all.into()))
    }

    fn expression(&mut self, raw: Expression, name: &'static str) -> Requirement {
        let operator = match &raw.operator {
            Field::Good(operator) => match operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => Operator::Unknown,
            },
            Field::Absent | Field::Odd => Operator::Unknown,
        };
        let key = match raw.key {
            Field::Good(key) => key,
            Field::Absent | Field::Odd => String::new(),
        };
        let values = match raw.values {
            Field::Absent => Some(Vec::new()),
            Field::Good(values) => self.values(values),
            Field::Odd => None,
        };
        self.requirement(&key, operator, values, name)
    }

    /// The values, unless one of them is no text. Go reads `null` as the empty text.
    fn values(&mut self, values: Vec<Field<String>>) -> Option<Vec<Text>> {
        let values = values.into_iter().map(|value| match value {
            Field::Good(value) => Some(self.symbols.text(&value)),
            Field::Absent => Some(Text::default()),
            Field::Odd => None,
        });
        values.collect()
    }

    /// A requirement, which nothing fulfils if it is not as it should be: to leave out one of the values would make it
    /// ask for something else.
    fn requirement(
        &mut self,
        key: &str,
        operator: Operator,
        values: Option<Vec<Text>>,
        name: &'static str,
    ) -> Requirement {
        let fits = values.as_ref().is_some_and(|values| match operator {
            Operator::In | Operator::NotIn => !values.is_empty(),
            Operator::Exists | Operator::DoesNotExist => values.is_empty(),
            Operator::Unknown => false,
        });
        let good = fits && !key.is_empty();
        if !good {
            self.odd.push(name);
        }
        let mut values = values.unwrap_or_default();
        values.sort_unstable();
        values.dedup();
        Requirement {
            key: self.symbols.text(key),
            operator: if good { operator } else { Operator::Unknown },
            values: values.into(),
        }
    }
}

fn no_end(end: &Field<u64>, what: &str) -> Result<(), String> {
    if matches!(end, Field::Absent) {
        return Ok(());
    }
    Err(format!("it has an endPort {what}"))
}

#[cfg(test)]
mod tests;
