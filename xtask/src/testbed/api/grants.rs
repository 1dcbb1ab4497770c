//! *Grants*: whose a token is, and which paths that one may `get`. They answer `TokenReview` and `SubjectAccessReview`
//! (`authentication.k8s.io/v1`, `authorization.k8s.io/v1`).

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// All of them, by token.
#[derive(Debug, Default)]
pub(super) struct Grants(BTreeMap<String, (String, Vec<String>)>);

impl Grants {
    pub(super) fn add(&mut self, token: &str, user: &str, paths: &[&str]) {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        self.0.insert(token.to_owned(), (user.to_owned(), paths));
    }

    pub(super) fn remove(&mut self, token: &str) {
        self.0.remove(token);
    }

    /// The review with its status; none for another path than the two reviews'.
    pub(super) fn review(&self, path: &str, mut asked: Value) -> Option<Value> {
        let text = |at: &str| {
            asked
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let status = match path {
            "/apis/authentication.k8s.io/v1/tokenreviews" => {
                match self.0.get(text("/spec/token")) {
                    Some((user, _)) => json!({
                        "authenticated": true,
                        "user": {"username": user, "uid": "1", "groups": ["system:authenticated"]},
                    }),
                    // As the real one says it.
                    None => json!({"user": {}, "error": "[invalid bearer token]"}),
                }
            }
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
                let (user, path) = (text("/spec/user"), text("/spec/nonResourceAttributes/path"));
                let gets = text("/spec/nonResourceAttributes/verb") == "get";
                let group = asked.pointer("/spec/groups/0") == Some(&json!("system:authenticated"));
                let mut theirs = self.0.values().filter(|(name, _)| name == user);
                let allowed = theirs.any(|(_, paths)| paths.iter().any(|p| p == path));
                json!({"allowed": allowed && gets && group})
            }
            _ => return None,
        };
        asked["status"] = status;
        Some(asked)
    }
}
