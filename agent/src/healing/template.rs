//! Texts with places for values: `{{ .context.node }}`.
//!
//! Paths only: no logic, no functions, no shell. A value that is missing is an error and never an empty text,
//! because an action on an empty target is an action on everything.

use serde_json::Value;

/// A template may be this long, in bytes.
pub const SOURCE_MAX_BYTES: usize = 8 * 1024;

/// What a path may begin with.
pub const ROOTS: [&str; 5] = ["context", "signal", "fault", "policy", "trace_id"];

/// Why a template is wrong or cannot be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{{` without `}}`.
    #[error("`{{{{` at character {0} is never closed by `}}}}`")]
    Unclosed(usize),
    /// Something other than a path stands between the braces.
    #[error("`{{{{{0}}}}}` is not a path, expected one such as `{{{{ .context.node }}}}`")]
    NotAPath(String),
    /// The path begins with an unknown name.
    #[error("`.{0}` is not known, {1}")]
    UnknownRoot(String, String),
    /// The template is too long.
    #[error("the template is longer than {SOURCE_MAX_BYTES} bytes")]
    SourceTooLong,
    /// The path leads to nothing.
    #[error("`.{0}` is missing in this signal")]
    Missing(String),
    /// The path leads to a list, a mapping or nothing.
    #[error("`.{0}` is not a text, number or boolean")]
    NotAScalar(String),
    /// The result is too long.
    #[error("the result is longer than {0} bytes")]
    TooLong(usize),
    /// The result contains a NUL byte, which no argument can.
    #[error("the result contains a NUL byte")]
    Nul,
    /// A value made an argument begin with `-`, so the program would take it for an option.
    #[error("a value would make the argument begin with `-`, as if it were an option")]
    Option,
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Path(Vec<String>),
}

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// Anything but a path between braces, an unclosed brace, an unknown first name, a template that is too
    /// long.
    pub fn parse(source: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_MAX_BYTES {
            return Err(TemplateError::SourceTooLong);
        }
        let mut parts = Vec::new();
        let mut rest = source;
        while let Some(open) = rest.find("{{") {
            if open > 0 {
                parts.push(Part::Text(rest[..open].to_owned()));
            }
            let inside = &rest[open + 2..];
            let Some(close) = inside.find("}}") else {
                let at = source.len() - inside.len() - 2;
                return Err(TemplateError::Unclosed(source[..at].chars().count() + 1));
            };
            parts.push(Part::Path(path(&inside[..close])?));
            rest = &inside[close + 2..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self(parts))
    }

    /// Fills the template in from `scope`, a mapping of [`ROOTS`], with at most `max_bytes` of result.
    ///
    /// # Errors
    /// A path leads to nothing or to something that is no scalar; the result is too long or has a NUL byte.
    pub fn render(&self, scope: &Value, max_bytes: usize) -> Result<String, TemplateError> {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Path(path) => out.push_str(&look_up(scope, path)?),
            }
            if out.len() > max_bytes {
                return Err(TemplateError::TooLong(max_bytes));
            }
        }
        if out.contains('\0') { Err(TemplateError::Nul) } else { Ok(out) }
    }

    /// [`Self::render`] into one argument of a program: a value must not turn it into an option.
    ///
    /// # Errors
    /// As [`Self::render`], and when a value is what makes the argument begin with `-`.
    pub fn render_argument(&self, scope: &Value, max_bytes: usize) -> Result<String, TemplateError> {
        let out = self.render(scope, max_bytes)?;
        let from_value = !matches!(self.0.first(), Some(Part::Text(_)) | None);
        if from_value && out.starts_with('-') { Err(TemplateError::Option) } else { Ok(out) }
    }
}

fn path(inside: &str) -> Result<Vec<String>, TemplateError> {
    let wrong = || TemplateError::NotAPath(inside.to_owned());
    let names = inside.trim().strip_prefix('.').ok_or_else(wrong)?;
    let path: Vec<String> = names.split('.').map(str::to_owned).collect();
    let name = |name: &String| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if !path.iter().all(name) {
        return Err(wrong());
    }
    if !ROOTS.contains(&path[0].as_str()) {
        let close = crate::config::diagnostic::suggestion(&path[0], ROOTS);
        return Err(TemplateError::UnknownRoot(path[0].clone(), close));
    }
    Ok(path)
}

fn look_up(scope: &Value, path: &[String]) -> Result<String, TemplateError> {
    let mut at = scope;
    for name in path {
        at = at.get(name).ok_or_else(|| TemplateError::Missing(path.join(".")))?;
    }
    match at {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(TemplateError::NotAScalar(path.join("."))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn render(source: &str, scope: &Value) -> Result<String, TemplateError> {
        Template::parse(source)?.render(scope, 64)
    }

    #[test]
    fn fills_in_paths() {
        let scope = json!({ "context": { "comm": "redis", "pid": 7, "list": [1] }, "signal": "oom_kill" });
        assert_eq!(
            render("{{ .context.comm }}[{{.context.pid}}]: {{ .signal }}", &scope).unwrap(),
            "redis[7]: oom_kill"
        );
        assert_eq!(render("no places", &scope).unwrap(), "no places");
        assert_eq!(render("{{ .context.pod }}", &scope), Err(TemplateError::Missing("context.pod".into())));
        assert_eq!(
            render("{{ .context.list }}", &scope),
            Err(TemplateError::NotAScalar("context.list".into()))
        );
        assert_eq!(render("{{ .context }}", &scope), Err(TemplateError::NotAScalar("context".into())));
    }

    #[test]
    fn refuses_all_but_paths() {
        for source in
            ["{{ context.comm }}", "{{ .context.comm | upper }}", "{{ .context..x }}", "{{}}", "{{ . }}"]
        {
            assert!(matches!(Template::parse(source), Err(TemplateError::NotAPath(_))), "{source}");
        }
        assert_eq!(Template::parse("ab {{ .context.x"), Err(TemplateError::Unclosed(4)));
        let error = Template::parse("{{ .contxt.x }}").unwrap_err().to_string();
        assert!(error.contains("did you mean `context`?"), "{error}");
    }

    #[test]
    fn bounds_the_result() {
        let scope = json!({ "context": { "long": "x".repeat(65), "nul": "a\0b" } });
        assert_eq!(render("{{ .context.long }}", &scope), Err(TemplateError::TooLong(64)));
        assert_eq!(render("{{ .context.nul }}", &scope), Err(TemplateError::Nul));
    }

    #[test]
    fn a_value_never_becomes_an_option() {
        let scope = json!({ "context": { "comm": "-rf" } });
        let argument = |source: &str| Template::parse(source).unwrap().render_argument(&scope, 64);
        assert_eq!(argument("{{ .context.comm }}"), Err(TemplateError::Option));
        assert_eq!(argument("--name={{ .context.comm }}").unwrap(), "--name=-rf");
    }

    proptest! {
        #[test]
        fn any_value_comes_out_as_it_is_and_in_one_piece(value in "[^\0]{0,16}") {
            let scope = json!({ "context": { "v": value } });
            prop_assert_eq!(render("{{ .context.v }}", &scope).unwrap(), value);
        }

        #[test]
        fn any_source_parses_or_is_refused(source in ".{0,80}") {
            let _ = Template::parse(&source);
        }
    }
}
