//! The commands beside the agent.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON};
use galen_tests::command::{finish, galen, kill_child, run_galen, signal, wait};
use galen_tests::lines::Lines;
use galen_tests::wait::{Look, eventually};
use serde_json::Value;

use super::lifecycle::{oom, small_cgroup};

const PROBES: [&str; 3] = ["tcp_connect", "file_write", "oom_kill"];

#[test]
fn doctor_names_the_hook_of_every_probe_and_changes_nothing() -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("galen-test-")?;
    let state = folder.path().join("state");
    let mut command = galen()?;
    command.args(["doctor", "--output", "json"]).env("GALEN_STATE_DIR", &state);
    let done = finish(&mut command, Duration::from_secs(20))?;
    ensure!(done.code() == 0, "{}\n{}", done.stdout, done.stderr);
    let report: Value = serde_json::from_str(&done.stdout)?;
    let probes = report["probes"].as_array().context("no probes")?;
    for name in PROBES {
        let probe = probes.iter().find(|probe| probe["probe"] == name).context(name)?;
        ensure!(probe["variant"] != "none" && probe["hook"].as_str().is_some_and(|hook| hook.len() > 3));
    }
    ensure!(!state.exists(), "it made {}", state.display());
    let text = run_galen(&["doctor"])?;
    ensure!(text.code() == 0 && PROBES.iter().all(|probe| text.stdout.contains(probe)), "{}", text.stdout);
    // What it says is what the agent does.
    let agent = Agent::start("")?;
    let metrics = agent.metrics()?;
    for probe in probes {
        let name = probe["probe"].as_str().unwrap_or_default();
        let labels = [
            ("probe", name),
            ("hook", probe["hook"].as_str().unwrap_or_default()),
            ("variant", probe["variant"].as_str().unwrap_or_default()),
        ];
        ensure!(metrics.sum("galen_probe_info", &labels) == 1.0, "{probe}");
    }
    Ok(())
}

#[test]
fn incidents_of_a_state_folder_that_is_not_there_are_an_error() -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("galen-test-")?;
    let (there, absent) = (folder.path(), folder.path().join("absent"));
    let absent = absent.to_str().context("UTF-8")?;
    for rest in [&["incidents"][..], &["incidents", "latest"], &["incidents", "--output", "json"]] {
        let done = run_galen(&[rest, &["--state-dir", absent]].concat())?;
        ensure!(done.code() == 1 && done.stdout.is_empty(), "{rest:?}: {} {}", done.status, done.stdout);
        ensure!(done.stderr.contains(absent) && done.stderr.contains("--state-dir"), "{}", done.stderr);
    }
    let none = run_galen(&["incidents", "--state-dir", there.to_str().context("UTF-8")?])?;
    ensure!(none.code() == 0 && none.stdout.contains("no incidents in"), "{} {}", none.status, none.stdout);
    Ok(())
}

#[test]
fn doctor_says_what_it_would_take() -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("galen-test-")?;
    let config = folder.path().join("galen.yaml");
    std::fs::write(&config, format!("host: {{ sys: {} }}\n", folder.path().display()))?;
    let done = run_galen(&["doctor", "--config", config.to_str().context("UTF-8")?])?;
    ensure!(done.stdout.contains("CONFIG_DEBUG_INFO_BTF"), "{}", done.stdout);
    Ok(())
}

#[test]
fn events_follow_a_running_agent() -> Result<()> {
    let mut agent = Agent::start("")?;
    let listen = agent.addr.to_string();
    let mut follower = galen()?
        .args(["events", "--listen", &listen, "--output", "json", "--kind", "oom_kill", "--since", "1m"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let lines = follower.stdout.take().map(Lines::of).unwrap_or_default();
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let found = lines.find(0, SOON, "oom_kill", |line| {
        let event: Value = serde_json::from_str(line).ok()?;
        (event["victim_pid"] == pid).then_some(event)
    });
    let kept = run_galen(&["events", "--listen", &listen, "--no-follow", "--kind", "oom_kill"])?;
    agent.stop()?;
    let status = wait(&mut follower, Duration::from_secs(5));
    kill_child(&mut follower);
    ensure!(found?["kind"] == "oom_kill");
    ensure!(status?.code() == Some(1), "the stream that it followed was ended");
    ensure!(kept.code() == 0 && kept.stdout.contains("galen-workload"), "{}", kept.stdout);
    Ok(())
}

#[test]
fn status_tells_by_its_exit_status_whether_anyone_is_unhealthy() -> Result<()> {
    let agent = Agent::start("")?;
    let listen = agent.addr.to_string();
    let ask = |output: &str| run_galen(&["status", "--listen", &listen, "--output", output]);
    let well = ask("json")?;
    ensure!(well.code() == 0, "{}", well.stdout);
    let cgroup = small_cgroup()?;
    oom(&cgroup)?;
    let subject = format!("cgroup:{}", cgroup.path());
    agent.event("health", |event| event["subject"] == *subject && event["to"] == "unhealthy")?;
    let ill = ask("json")?;
    ensure!(ill.code() == 1, "{}", ill.stdout);
    let status: Value = serde_json::from_str(&ill.stdout)?;
    let worst = &status["health"][0];
    ensure!(worst["state"] == "unhealthy", "the worst comes first: {worst}");
    let listed = status["health"].as_array().context("no health")?;
    ensure!(listed.iter().any(|health| health["subject"] == *subject), "{listed:?}");
    let text = ask("text")?;
    ensure!(text.code() == 1 && text.stdout.contains(&subject), "{}", text.stdout);
    Ok(())
}

#[test]
fn without_an_agent_the_commands_say_so_in_one_sentence() -> Result<()> {
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    for command in ["status", "events"] {
        let done = run_galen(&[command, "--listen", &free])?;
        ensure!(done.code() != 0 && done.stderr.lines().count() == 1, "{}", done.stderr);
        ensure!(done.stderr.contains(&free) && done.stderr.contains("galen agent"), "{}", done.stderr);
    }
    Ok(())
}

#[test]
fn help_shows_an_example_and_a_bad_command_line_ends_with_2() -> Result<()> {
    for command in ["agent", "doctor", "validate", "events", "status", "incidents", "replay", "check"] {
        let done = run_galen(&[command, "--help"])?;
        ensure!(done.code() == 0, "{command}: {}", done.stderr);
        ensure!(
            done.stdout.contains(&format!("galen {command}")) && done.stdout.contains("Example"),
            "{command}"
        );
        ensure!(run_galen(&[command, "--no-such-flag"])?.code() == 2, "{command}");
    }
    Ok(())
}

#[test]
fn the_effective_configuration_can_be_used_again() -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("galen-test-")?;
    let config = folder.path().join("galen.yaml");
    let printed = run_galen(&["agent", "--print-config", "--listen", "127.0.0.1:1"])?;
    ensure!(printed.code() == 0 && printed.stdout.contains("127.0.0.1:1"), "{}", printed.stderr);
    std::fs::write(&config, &printed.stdout)?;
    let again = run_galen(&["validate", config.to_str().context("UTF-8")?])?;
    ensure!(again.code() == 0, "{}{}", again.stdout, again.stderr);
    Ok(())
}

/// A command, its exit status when nobody reads what it prints, and when that goes to a full disk.
type Unread<'a> = (&'a [&'a str], i32, i32);

/// A panic ends with 101, and with a signal where panics abort.
fn no_panic(commands: &[Unread<'_>]) -> Result<()> {
    for (arguments, gone, full) in commands {
        for (is_full, expected) in [(false, gone), (true, full)] {
            let output = || -> Result<Stdio> {
                Ok(if is_full { File::create("/dev/full")?.into() } else { std::io::pipe()?.1.into() })
            };
            // The log has something to say too.
            let mut command = galen()?;
            command.args(*arguments).env("GALEN_LOG", "galen_agent=loud").stdout(output()?).stderr(output()?);
            let status = wait(&mut command.spawn()?, Duration::from_secs(20))?;
            ensure!(status.code() == Some(*expected), "{arguments:?}, full disk: {is_full}: {status}");
        }
    }
    Ok(())
}

#[test]
fn a_reader_that_went_away_or_a_full_disk_is_no_panic() -> Result<()> {
    let folder = tempfile::TempDir::with_prefix("galen-test-")?;
    let (good, bad) = (folder.path().join("good.yaml"), folder.path().join("bad.yaml"));
    std::fs::write(&good, "node: a\n")?;
    std::fs::write(&bad, "lisen: a\n")?;
    let (good, bad) = (good.display().to_string(), bad.display().to_string());
    no_panic(&[
        (&["doctor", "--config", &bad], 2, 2),
        (&["validate", &good], 0, 1),
        (&["validate", &bad], 1, 1),
        (&["validate", "--output", "json", &good], 0, 1),
        (&["agent", "--print-config"], 0, 1),
        (&["agent", "--config", &bad], 2, 2),
        (&["status", "--listen", "127.0.0.1:1"], 1, 1),
    ])
}

#[test]
fn doctor_does_not_panic_when_nobody_reads_it() -> Result<()> {
    no_panic(&[(&["doctor"], 0, 1), (&["doctor", "--output", "json"], 0, 1)])
}

#[test]
fn an_agent_whose_log_nobody_reads_goes_on() -> Result<()> {
    for full in [false, true] {
        let log = if full { File::create("/dev/full")?.into() } else { Stdio::from(std::io::pipe()?.1) };
        let state = tempfile::TempDir::with_prefix("galen-test-")?;
        let listen = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut child = galen()?
            .args(["agent", "--output", "none", "--listen", &listen.to_string()])
            .env("GALEN_STATE_DIR", state.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        let answers = eventually(SOON, "an answer", || {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("it ended: {status}");
            }
            let answer = galen_tests::http::get(listen, "/readyz", "*/*");
            Ok(match answer {
                Ok(answer) if answer.status == 200 => Look::Done(()),
                Ok(answer) => Look::NotYet(answer.body),
                Err(error) => Look::NotYet(error.to_string()),
            })
        });
        let ended = signal(&child, libc::SIGTERM).and_then(|()| wait(&mut child, Duration::from_secs(6)));
        kill_child(&mut child);
        answers?;
        ensure!(ended?.code() == Some(0), "full: {full}");
    }
    Ok(())
}

#[test]
fn a_follower_ends_in_order_on_both_signals() -> Result<()> {
    for number in [libc::SIGTERM, libc::SIGINT] {
        // Signals are listened for before the agent is asked.
        let agent = std::net::TcpListener::bind("127.0.0.1:0")?;
        let mut follower = galen()?.args(["events", "--listen", &agent.local_addr()?.to_string()]).spawn()?;
        let asked = agent.accept();
        let status = signal(&follower, number).and_then(|()| wait(&mut follower, Duration::from_secs(5)));
        kill_child(&mut follower);
        drop(asked?);
        ensure!(status?.code() == Some(0), "signal {number}");
    }
    Ok(())
}
