//! Environment variables over the file.
//!
//! The variable of a key is `GALEN_` and its path in upper case, joined by `_`:
//! `kernel.file_write.emit` is `GALEN_KERNEL_FILE_WRITE_EMIT`. Only scalars can be set.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::Diagnostic;
use super::diagnostic::suggestion;
use super::load::{Leaf, Origin};

const PREFIX: &str = "GALEN_";

/// Variables that are no configuration keys: of the tools around the agent.
const OTHERS: [&str; 5] = ["GALEN_BIN", "GALEN_CACHE_DIR", "GALEN_CONFIG", "GALEN_EBPF_OBJECT", "GALEN_LOG"];

/// Kubernetes sets these in every pod beside a Service called `galen`.
const SERVICE_LINKS: [&str; 2] = ["GALEN_SERVICE_", "GALEN_PORT"];

/// Adds a leaf for each variable that names a key, and what is odd about the others. Values of unknown
/// variables are never repeated: they may be secrets.
pub(super) fn overrides(
    env: impl Iterator<Item = (String, String)>,
    schema: &Json,
    leaves: &mut Vec<Leaf>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let known = names(schema);
    // The order of the environment is arbitrary, that of the messages is not.
    let set: BTreeMap<String, String> = env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
    for (name, text) in set {
        let Some((path, default)) = known.get(&name) else {
            if !OTHERS.contains(&name.as_str()) && !SERVICE_LINKS.iter().any(|link| name.starts_with(link)) {
                let close = suggestion(&name, known.keys().map(String::as_str));
                let way_out =
                    if close.starts_with("did") { close } else { "see docs/configuration.md".into() };
                diagnostics.push(Diagnostic::of(&name, "is not known to galen").expected(way_out).warning());
            }
            continue;
        };
        if default.is_array() {
            let what = format!("`{}` is a list", path.join("."));
            diagnostics.push(Diagnostic::of(&name, what).expected("set it in the configuration file"));
            continue;
        }
        let value = match default {
            Json::Bool(_) | Json::Number(_) => serde_json::from_str(&text).unwrap_or(Json::String(text)),
            _ => Json::String(text),
        };
        leaves.push(Leaf { path: path.clone(), value, origin: Origin::Variable(name) });
    }
}

/// The variable of every key, with the key's path and default.
fn names(schema: &Json) -> BTreeMap<String, (Vec<String>, &Json)> {
    let mut names = BTreeMap::new();
    let mut open = vec![(Vec::new(), schema)];
    while let Some((path, node)) = open.pop() {
        match node {
            Json::Object(children) => {
                for (name, child) in children {
                    let path: Vec<String> = path.iter().chain([name]).cloned().collect();
                    open.push((path, child));
                }
            }
            leaf => {
                names.insert(format!("{PREFIX}{}", path.join("_").to_uppercase()), (path, leaf));
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::schema;

    #[test]
    fn every_key_has_a_variable_of_its_own() {
        fn leaves(node: &Json) -> usize {
            node.as_object().map_or(1, |children| children.values().map(leaves).sum())
        }
        let schema = schema();
        assert_eq!(names(&schema).len(), leaves(&schema), "two keys share a variable");
    }
}
