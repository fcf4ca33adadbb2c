//! Health inspection of what endpoints say in JSON: values at paths, and how full a pool is.

use anyhow::{Context, Result, ensure};
use galen_tests::agent::Agent;
use galen_tests::command::run_galen;
use galen_tests::nginx::Nginx;

use crate::inspection::{becomes, config};

const LOCATIONS: &str = r#"location = /health { return 200 '{"status":"UP","parts":[{"db":"UP","n":3},{"mq":"DOWN"}]}'; }
location = /text { return 200 'UP'; }
location = /calm { return 200 '{"pool":{"active":4,"max":50}}'; }
location = /full { return 200 '{"pool":{"active":49,"max":50}}'; }
location = /odd { return 200 '{"pool":{"active":"many","max":0}}'; }"#;

#[test]
fn json_is_held_against_values_at_paths_and_pools_against_their_watermark() -> Result<()> {
    let nginx = Nginx::start(LOCATIONS)?;
    let of = |name: &str, path: &str, rules: &str| {
        format!("name: {name}, http: {{ url: \"{}\", json_matches: [{rules}] }}", nginx.url(path))
    };
    let pool = |name: &str, path: &str, rest: &str| {
        format!("name: {name}, pool: {{ url: \"{}\", used: $.pool.active, {rest} }}", nginx.url(path))
    };
    let targets = [
        of("up", "/health", "{ path: $.status, equals: UP }, { path: \"$.parts[0].n\", equals: 3 }"),
        of("pattern", "/health", "{ path: \"$.parts[*].db\", matches: \"^(UP|OK)$\" }"),
        of("down", "/health", "{ path: \"$.parts[*].mq\", equals: UP }"),
        of("absent", "/health", "{ path: \"$.parts[?@.n > 3]\" }"),
        of("text", "/text", "{ path: $.status }"),
        pool("calm", "/calm", "max: $.pool.max"),
        pool("given", "/full", "max: 100, watermark: 50%"),
        pool("full", "/full", "max: $.pool.max"),
        pool("odd", "/odd", "max: 10"),
        pool("none", "/calm", "max: $.pool.gone"),
    ];
    let mut agent = Agent::start(&config(&targets))?;
    for name in ["up", "pattern", "calm", "given"] {
        becomes(&agent, name, "healthy")?;
    }
    for (name, code, detail) in [
        ("down", "body", "is \"DOWN\", and not \"UP\""),
        ("absent", "body", "selects nothing"),
        ("text", "body", "the body is no JSON"),
        ("full", "watermark", "49 of 50 are used (98.0 %), more than 90 %"),
        ("odd", "body", "is \"many\", and no number"),
        ("none", "body", "selects nothing"),
    ] {
        let target = becomes(&agent, name, "unhealthy")?;
        let said = target["detail"].as_str().context("no detail")?;
        ensure!(target["error_code"] == code && said.contains(detail), "{target}");
    }
    agent.stop()?;

    let folder = tempfile::tempdir()?;
    let file = folder.path().join("galen.yaml");
    let wrong = "inspection:\n  targets:\n    - name: a\n      http:\n        url: http://h/\n        \
                 json_matches:\n          - { path: \"$.a[\", equals: 1 }\n";
    std::fs::write(&file, wrong)?;
    let done = run_galen(&["validate", &file.display().to_string()])?;
    let said = format!("{}{}", done.stdout, done.stderr);
    ensure!(
        done.code() == 1 && said.contains("galen.yaml:7:21: `$.a[` is no JSON path (RFC 9535)"),
        "{said}"
    );
    Ok(())
}
