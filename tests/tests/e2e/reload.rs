//! SIGHUP: what changed takes effect; what is broken does not.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::cgroup::Cgroup;
use galen_tests::receiver::{Manner, Receiver};
use tempfile::TempDir;

use super::healing::only_in;
use super::lifecycle::{oom, small_cgroup};

/// A policy that posts to `url`.
fn policy(name: &str, cgroup: &Cgroup, url: &str) -> String {
    format!(
        "name: {name}\ntriggers:\n  - {{ type: fault, signal: oom_kill }}\n{}actions:\n  - id: tell\n    \
         type: notify/webhook\n    params: {{ url: \"{url}\", text: \"from {name}\" }}\ncooldown: 0s\n",
        only_in(&[cgroup])
    )
}

fn start(policy: &Path) -> Result<Agent> {
    Agent::start(&format!("healing: {{ mode: auto, policies: [{}] }}\n", policy.display()))
}

#[test]
fn a_changed_policy_takes_effect_and_a_broken_one_does_not() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let file = folder.path().join("policy.yaml");
    let receiver = Receiver::start(Manner::Answers)?;
    let cgroup = small_cgroup()?;
    fs::write(&file, policy("first", &cgroup, &receiver.url("/first")))?;
    let mut agent = start(&file)?;
    oom(&cgroup)?;
    ensure!(receiver.next(SOON)?.path == "/first");

    fs::write(&file, policy("second", &cgroup, &receiver.url("/second")))?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    agent.log_from(mark, "read again")?;
    oom(&cgroup)?;
    let post = receiver.next(SOON)?;
    ensure!(post.path == "/second" && post.body["text"] == "from second", "{post:?}");

    fs::write(&file, policy("third", &cgroup, &receiver.url("/third")).replace("triggers", "trigers"))?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    let refused = agent.log_from(mark, "policy.yaml:2:1")?;
    ensure!(refused.contains("did you mean `triggers`?"), "{refused}");
    oom(&cgroup)?;
    let post = receiver.next(SOON)?;
    ensure!(post.path == "/second", "the old policy goes on: {post:?}");
    agent.stop()
}

#[test]
fn a_broken_configuration_is_refused_and_the_old_one_goes_on() -> Result<()> {
    let mut agent = Agent::start("")?;
    let good = fs::read_to_string(&agent.config)?;
    fs::write(&agent.config, format!("{good}health: {{ worse_after: never }}\n"))?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    let refused = agent.log_from(mark, "galen.yaml:2:24")?;
    ensure!(refused.contains("worse_after"), "{refused}");
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    agent.event_from(0, "oom_kill", Duration::from_secs(3), |event| event["victim_pid"] == pid)?;
    fs::write(&agent.config, good)?;
    agent.signal(libc::SIGHUP)?;
    agent.log_from(mark, "read again")?;
    agent.stop()
}
