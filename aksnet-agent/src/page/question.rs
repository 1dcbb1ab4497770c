//! A *question* to `/api/live` is the query of its address: fields of [`LiveQuery`], those of its filter among them.

use crate::{
    config::suggest::hint,
    live::{LiveQuery, Sort},
};

const FIELDS: [&str; 7] = [
    "limit",
    "sort",
    "reverse",
    "text",
    "class",
    "nat",
    "namespace",
];

/// Reads it. `class` and `nat` may be there more than once; an empty value is none.
///
/// # Errors
/// Names what is not understood.
pub(super) fn read(query: &str) -> Result<LiveQuery, String> {
    let mut asked = LiveQuery::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if value.is_empty() && FIELDS.contains(&&*name) {
            continue;
        }
        match &*name {
            "limit" => {
                asked.limit = value
                    .parse()
                    .map_err(|_| format!("limit: '{value}' is not a whole number"))?;
            }
            "sort" => asked.sort = sort(&value)?,
            "reverse" => {
                asked.reverse = value
                    .parse()
                    .map_err(|_| format!("reverse: '{value}' is neither true nor false"))?;
            }
            "text" => asked.filter.text = value.into_owned(),
            "class" => asked.filter.class.push(value.into_owned()),
            "nat" => asked.filter.nat.push(value.into_owned()),
            "namespace" => asked.filter.namespace = Some(value.into_owned()),
            _ => {
                let hint = hint(&name, FIELDS);
                return Err(format!("no field '{name}'{hint}"));
            }
        }
    }
    // Equal questions read equal.
    asked.limit = asked.limit();
    Ok(asked)
}

fn sort(name: &str) -> Result<Sort, String> {
    let names = Sort::ALL.map(|sort| match serde_json::to_value(sort) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    });
    let known = names.iter().position(|known| known == name);
    known.map(|at| Sort::ALL[at]).ok_or_else(|| {
        let names = names.iter().map(String::as_str);
        format!("no order '{name}'{}", hint(name, names))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Filter;

    #[test]
    fn a_question_is_read_from_an_address() {
        let asked = read(
            "limit=9000&sort=drops&reverse=true&text=web+10.0%2E0&class=pod_to_pod&class=node_port&nat=both&\
             namespace=shop",
        );
        let expected = LiveQuery {
            limit: 5000,
            sort: Sort::Drops,
            reverse: true,
            filter: Filter {
                text: "web 10.0.0".to_owned(),
                class: vec!["pod_to_pod".to_owned(), "node_port".to_owned()],
                nat: vec!["both".to_owned()],
                namespace: Some("shop".to_owned()),
            },
            ..LiveQuery::default()
        };
        assert_eq!(asked, Ok(expected));
        assert_eq!(read(""), Ok(LiveQuery::default()));
        assert_eq!(read("text=&namespace=&class="), Ok(LiveQuery::default()));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (query, said) in [
            ("limit=many", "limit: 'many' is not a whole number"),
            ("limit=-1", "limit: '-1' is not a whole number"),
            ("reverse=yes", "reverse: 'yes' is neither true nor false"),
            ("sort=drop", "no order 'drop'; did you mean 'drops'?"),
            ("txet=web", "no field 'txet'; did you mean 'text'?"),
            ("frobnicate", "no field 'frobnicate'"),
        ] {
            assert_eq!(read(query), Err(said.to_owned()), "{query}");
        }
    }
}
