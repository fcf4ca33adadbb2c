//! Conditions of policies: CEL over the signal.
//!
//! The release build aborts on a panic, so what could make the interpreter overflow its stack or run for long
//! is refused when the policy is read: long sources, deep nesting, long chains of operators, and loops within
//! loops.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cel::common::ast::{EntryExpr, Expr, IdedExpr};
use cel::objects::{Key, Map};
use cel::{Context, Env, Program};
use serde_json::Value;

/// A condition may be this long, in bytes.
pub const SOURCE_MAX_BYTES: usize = 4 * 1024;
/// Brackets within brackets.
const NESTING_MAX: usize = 24;
/// Characters of operators: a chain of them nests in the tree without a bracket.
const OPERATORS_MAX: usize = 256;
/// Levels of the parsed tree.
const DEPTH_MAX: usize = 96;

/// What a condition may refer to.
pub const VARIABLES: [&str; 3] = ["context", "signal", "fault"];

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Why a condition is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// The source is too long.
    #[error("the condition is longer than {SOURCE_MAX_BYTES} bytes")]
    TooLong,
    /// Too many brackets within brackets, operators, or levels of the tree.
    #[error("the condition is nested too deep or has too many operators")]
    TooComplex,
    /// A loop within a loop.
    #[error("the condition has a loop such as `all` or `map` within another")]
    NestedLoop,
    /// It is not CEL.
    #[error("not CEL at character {column}: {message}")]
    Syntax {
        /// Character from 1.
        column: usize,
        /// What the parser said.
        message: String,
    },
    /// It refers to a variable that does not exist.
    #[error("`{0}` is not known, {1}")]
    Unknown(String, String),
    /// It makes a value of a type that conditions do not have.
    #[error("structures such as `T{{}}` are not available")]
    Structure,
}

/// A compiled condition.
#[derive(Clone, Debug)]
pub struct Condition {
    source: Arc<str>,
    program: Arc<Program>,
}

/// What became of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// It could not be told, with the reason; counts as not holding.
    Undecided(String),
}

impl Condition {
    /// Compiles a condition.
    ///
    /// # Errors
    /// It is not CEL, refers to unknown variables, or is too long, too deep or too slow.
    pub fn parse(source: &str) -> Result<Self, ConditionError> {
        if source.len() > SOURCE_MAX_BYTES {
            return Err(ConditionError::TooLong);
        }
        bound(source)?;
        let program = ENV.compile(source).map_err(|errors| {
            let first = errors.errors.first();
            ConditionError::Syntax {
                column: first.and_then(|error| usize::try_from(error.pos.1).ok()).unwrap_or(1),
                message: first.map_or_else(|| errors.to_string(), |error| error.msg.clone()),
            }
        })?;
        let mut local = Vec::new();
        inspect(program.expression(), &mut local, 0, false)?;
        Ok(Self { source: source.into(), program: Arc::new(program) })
    }

    /// As it was written.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Evaluates the condition over `scope`, a mapping of [`VARIABLES`].
    #[must_use]
    pub fn evaluate(&self, scope: &Value) -> Verdict {
        let mut context = Context::with_env(Arc::clone(&ENV));
        for name in VARIABLES {
            context.add_variable_from_value(name, to_cel(scope.get(name).unwrap_or(&Value::Null)));
        }
        match self.program.execute(&context) {
            Ok(cel::Value::Bool(true)) => Verdict::True,
            Ok(cel::Value::Bool(false)) => Verdict::False,
            Ok(other) => Verdict::Undecided(format!("is {}, expected true or false", other.type_of())),
            Err(error) => Verdict::Undecided(brief(&error.to_string())),
        }
    }
}

/// Errors of the interpreter may repeat whole values.
fn brief(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Counts brackets and operators outside of strings, before the recursive parser sees the source.
fn bound(source: &str) -> Result<(), ConditionError> {
    let (mut depth, mut operators) = (0_usize, 0_usize);
    let mut quote = None;
    let mut chars = source.chars();
    while let Some(c) = chars.next() {
        if let Some(end) = quote {
            if c == '\\' {
                chars.next();
            } else if c == end {
                quote = None;
            }
            continue;
        }
        match c {
            '"' | '\'' => quote = Some(c),
            '(' | '[' | '{' => {
                depth += 1;
                operators += 1;
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '+' | '-' | '*' | '/' | '%' | '<' | '>' | '=' | '!' | '&' | '|' | '?' | ':' | '.' => {
                operators += 1
            }
            _ => {}
        }
        if depth > NESTING_MAX || operators > OPERATORS_MAX {
            return Err(ConditionError::TooComplex);
        }
    }
    Ok(())
}

/// Refuses what the interpreter cannot do in bounded stack and time, and unknown variables.
fn inspect(
    node: &IdedExpr,
    local: &mut Vec<String>,
    depth: usize,
    in_loop: bool,
) -> Result<(), ConditionError> {
    if depth > DEPTH_MAX {
        return Err(ConditionError::TooComplex);
    }
    let go = |child: &IdedExpr, local: &mut Vec<String>| inspect(child, local, depth + 1, in_loop);
    match &node.expr {
        Expr::Unspecified | Expr::Struct(_) => Err(ConditionError::Structure),
        Expr::Literal(_) => Ok(()),
        Expr::Ident(name) => known(name, local),
        Expr::Select(select) => go(&select.operand, local),
        Expr::List(list) => list.elements.iter().try_for_each(|element| go(element, local)),
        Expr::Call(call) => {
            call.target.iter().try_for_each(|target| go(target, local))?;
            call.args.iter().try_for_each(|argument| go(argument, local))
        }
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => go(&entry.key, local).and_then(|()| go(&entry.value, local)),
            EntryExpr::StructField(_) => Err(ConditionError::Structure),
        }),
        Expr::Comprehension(it) => {
            if in_loop {
                return Err(ConditionError::NestedLoop);
            }
            go(&it.iter_range, local)?;
            go(&it.accu_init, local)?;
            let outer = local.len();
            local.push(it.iter_var.clone());
            local.extend(it.iter_var2.clone());
            local.push(it.accu_var.clone());
            for part in [&it.loop_cond, &it.loop_step, &it.result] {
                inspect(part, local, depth + 1, true)?;
            }
            local.truncate(outer);
            Ok(())
        }
    }
}

fn known(name: &str, local: &[String]) -> Result<(), ConditionError> {
    // Names of types are constants, as in `type(context.pid) == int`.
    const TYPES: [&str; 11] =
        ["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type", "dyn"];
    if VARIABLES.contains(&name) || TYPES.contains(&name) || local.iter().any(|known| known == name) {
        return Ok(());
    }
    let close = crate::config::diagnostic::suggestion(name, VARIABLES);
    Err(ConditionError::Unknown(name.to_owned(), close))
}

/// JSON as CEL; whole numbers become `int`, because that is what a literal is.
fn to_cel(value: &Value) -> cel::Value {
    match value {
        Value::Null => cel::Value::Null,
        Value::Bool(value) => cel::Value::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => cel::Value::Int(number),
            (None, Some(number)) => cel::Value::UInt(number),
            (None, None) => cel::Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => cel::Value::String(Arc::new(text.clone())),
        Value::Array(items) => cel::Value::List(Arc::new(items.iter().map(to_cel).collect())),
        Value::Object(entries) => {
            let entries: HashMap<Key, cel::Value> = entries
                .iter()
                .map(|(key, value)| (Key::String(Arc::new(key.clone())), to_cel(value)))
                .collect();
            cel::Value::Map(Map { map: Arc::new(entries) })
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn evaluate(source: &str) -> Verdict {
        let scope = json!({
            "context": { "oom_score_adj": 0, "pid": 7_u64, "comm": "redis", "reasons": ["a", "b"], "ratio": 0.5 },
            "signal": "oom_kill",
            "fault": { "subject": "node", "value": 1.0 },
        });
        Condition::parse(source).unwrap_or_else(|error| panic!("{source}: {error}")).evaluate(&scope)
    }

    #[test]
    fn holds_or_does_not() {
        for source in [
            "context.oom_score_adj < 900",
            "context.pid == 7 && context.comm.startsWith('red')",
            "signal == 'oom_kill' || context.absent == 1",
            "has(context.pid) && !has(context.absent)",
            "context.reasons.exists(r, r == 'b')",
            "context.ratio < 1.0 && fault.value >= 1.0",
            "context.comm in ['redis', 'memcached']",
        ] {
            assert_eq!(evaluate(source), Verdict::True, "{source}");
        }
        assert_eq!(evaluate("context.oom_score_adj > 900"), Verdict::False);
    }

    #[test]
    fn is_undecided_with_a_reason_when_it_cannot_be_told() {
        for (source, part) in [
            ("context.absent < 1", "absent"),
            ("context.pid", "expected true or false"),
            ("context.pid / 0 == 1", "zero"),
            ("9223372036854775807 + context.pid > 0", "verflow"),
            ("context.comm < 3", ""),
            ("context.reasons[9] == 'x'", "9"),
        ] {
            let Verdict::Undecided(reason) = evaluate(source) else {
                panic!("{source}: {:?}", evaluate(source))
            };
            assert!(reason.contains(part), "{source}: {reason}");
        }
    }

    #[test]
    fn refuses_what_is_wrong_when_it_is_read() {
        let wrong = |source: &str| Condition::parse(source).unwrap_err();
        assert!(matches!(wrong("context.x <"), ConditionError::Syntax { .. }));
        assert_eq!(
            wrong("contxt.x < 1"),
            ConditionError::Unknown("contxt".into(), "did you mean `context`?".into())
        );
        assert_eq!(wrong(&"x".repeat(5000)), ConditionError::TooLong);
        assert_eq!(wrong("[1].all(a, [1].all(b, a == b))"), ConditionError::NestedLoop);
        assert_eq!(wrong("T{}.x == 1"), ConditionError::Structure);
    }

    #[test]
    fn refuses_what_would_overflow_the_stack() {
        let deep = |open: &str, inner: &str, close: &str, n: usize| {
            format!("{}{inner}{}", open.repeat(n), close.repeat(n))
        };
        for source in [
            deep("(", "true", ")", 1500),
            deep("[", "1", "]", 1500),
            deep("!", "true", "", 3000),
            deep("-", "1", "", 3000),
            deep("true ? true : ", "true", "", 290),
            deep("1+", "1", " > 0", 400),
            deep("context.", "x", "", 500),
            deep("'\\'' + ", "''", "", 400),
        ] {
            assert!(Condition::parse(&source).is_err(), "{}", &source[..40]);
        }
    }

    #[test]
    fn the_longest_chains_that_pass_fit_into_a_small_stack() {
        let chains = ["true && ", "1 == 1 || ", "true ? true : ", "!!!!!!!!!!!!"].map(|link| {
            let mut source = "true".to_owned();
            while Condition::parse(&format!("{link}{source}")).is_ok() && source.len() < 3900 {
                source = format!("{link}{source}");
            }
            source
        });
        let run = move || {
            for source in chains {
                let verdict = Condition::parse(&source).unwrap().evaluate(&json!({}));
                assert!(!matches!(verdict, Verdict::Undecided(_)), "{source}");
            }
        };
        std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(run).unwrap().join().unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn nothing_that_is_read_panics(source in "[a-z0-9 .()\\[\\]{}<>=!&|?:+*/%'\",-]{0,60}") {
            if let Ok(condition) = Condition::parse(&source) {
                let _ = condition.evaluate(&json!({ "context": {} }));
            }
        }
    }
}
