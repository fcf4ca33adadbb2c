//! What the running agent may still do, with which rights it runs at all, and who may ask it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use galen_tests::agent::{Agent, SOON, Start};
use galen_tests::command::{Finished, finish, galen_path, run_galen};
use galen_tests::wait::{Look, eventually};
use serde_json::Value;
use tempfile::TempDir;

use super::bad_input::{counts, says};
use super::lifecycle::{oom, small_cgroup};
use super::oom_kill::wait_for_scopes;

const DAC_READ_SEARCH: u32 = 2;
const SYS_PTRACE: u32 = 19;
const SYSLOG: u32 = 34;
const PERFMON: u32 = 38;
const BPF: u32 = 39;
const ALL: [u32; 5] = [DAC_READ_SEARCH, SYS_PTRACE, SYSLOG, PERFMON, BPF];

/// The fields of each thread's status, by the thread's name and id.
fn threads(pid: u32) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut threads = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        // A thread may end while it is looked at.
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let fields: BTreeMap<String, String> = status
            .lines()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        threads.insert(format!("{} {}", fields["Name"], entry.file_name().display()), fields);
    }
    Ok(threads)
}

fn mask(capabilities: &[u32]) -> String {
    format!("{:016x}", capabilities.iter().map(|number| 1_u64 << number).sum::<u64>())
}

/// What is wrong with the rights of any thread.
fn too_much(pid: u32) -> Result<Vec<String>> {
    let none = mask(&[]);
    let mut wrong = Vec::new();
    for (name, fields) in threads(pid)? {
        let kept = if name.starts_with("galen-links ") {
            mask(&[DAC_READ_SEARCH, SYS_PTRACE])
        } else {
            mask(&[DAC_READ_SEARCH])
        };
        let expected = [
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
            ("CapPrm", &kept),
            ("CapEff", &kept),
            ("CapInh", &none),
            ("CapAmb", &none),
            ("CapBnd", &none),
        ];
        for (field, value) in expected {
            if fields[field] != value {
                wrong.push(format!("{name}: {field} {} and not {value}", fields[field]));
            }
        }
    }
    Ok(wrong)
}

#[test]
fn every_thread_has_given_up_what_it_does_not_need() -> Result<()> {
    let mut agent = Agent::start("")?;
    let confined = |when: &str| {
        // The one that reads symbols may just be ending.
        eventually(SOON, format_args!("no thread with rights to spare {when}"), || {
            let wrong = too_much(agent.pid())?;
            Ok(if wrong.is_empty() { Look::Done(()) } else { Look::NotYet(wrong.join("\n")) })
        })
    };
    confined("when it is ready")?;
    says(&agent, &["capabilities given up", "no_new_privs", "Landlock ABI", "seccomp denies"])?;
    // What it is for still goes, on threads that were started later too.
    counts(&agent)?;
    wait_for_scopes(&agent)?;
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    ensure!(event["cgroup"] == cgroup.path() && event["scope"] == "memcg", "{event}");
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    agent.log_from(mark, "read again")?;
    ensure!(threads(agent.pid())?.len() > 3, "the runtime has threads");
    confined("when it has worked")?;
    agent.stop()?;
    ensure!(!agent.socket().exists(), "the socket goes with it");
    // What the kernel refuses of hooks it refused before there was a sandbox.
    let of_the_sandbox = |line: &String| line.contains("permitted") && !line.contains("probe ");
    let refused: Vec<String> = agent.stderr.all().into_iter().filter(of_the_sandbox).collect();
    ensure!(refused.is_empty(), "the sandbox was in its way: {refused:?}");
    Ok(())
}

#[test]
fn it_can_be_switched_off_and_says_so() -> Result<()> {
    let mut agent = Agent::start("privileges: { drop: false, landlock: false, seccomp: false }\n")?;
    for (name, fields) in threads(agent.pid())? {
        ensure!(fields["Seccomp"] == "0" && fields["NoNewPrivs"] == "0", "{name}");
    }
    says(&agent, &["WARN", "nothing is given up"])?;
    counts(&agent)?;
    agent.stop()
}

#[test]
fn what_was_not_named_at_the_start_cannot_be_read_by_a_reload() -> Result<()> {
    let elsewhere = TempDir::with_prefix("galen-test-")?;
    let policy = elsewhere.path().join("policy.yaml");
    fs::write(
        &policy,
        "name: p\ntriggers: [{ type: fault, signal: oom_kill }]\nactions: [{ id: a, type: log, params: { text: x } }]\n",
    )?;
    let mut agent = Agent::start("")?;
    let good = fs::read_to_string(&agent.config)?;
    fs::write(&agent.config, format!("{good}healing: {{ policies: [{}] }}\n", policy.display()))?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    let refused = agent.log_from(mark, "policy.yaml")?;
    ensure!(refused.contains("ermission denied"), "{refused}");
    agent.stop()?;
    // Named from the start, it is.
    let mut agent = Agent::start(&format!("healing: {{ policies: [{}] }}\n", policy.display()))?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    agent.log_from(mark, "read again")?;
    ensure!(!agent.stderr.all().iter().any(|line| line.contains("denied")), "{}", agent.stderr.tail());
    agent.stop()
}

#[test]
fn programs_that_are_allowed_later_take_a_restart_and_it_is_said() -> Result<()> {
    let mut agent = Agent::start("")?;
    let good = fs::read_to_string(&agent.config)?;
    fs::write(&agent.config, format!("{good}healing: {{ exec_allow: [/bin/true] }}\n"))?;
    let mark = agent.stderr.mark();
    agent.signal(libc::SIGHUP)?;
    agent.log_from(mark, "lets no program be run: restart")?;
    agent.stop()?;
    // Allowed from the start, they have the rights that they need, and what is left of the sandbox.
    let mut agent = Agent::start("healing: { exec_allow: [/bin/true] }\n")?;
    says(&agent, &["not restricted", "healing.exec_allow"])?;
    for (name, fields) in threads(agent.pid())? {
        ensure!(fields["NoNewPrivs"] == "1" && fields["Seccomp"] == "2", "{name}: {fields:?}");
    }
    agent.stop()
}

#[test]
fn signals_while_it_starts_are_not_lost_and_end_nothing_halfway() -> Result<()> {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut agent = Start::with("").spawn()?;
        // Attached, and no runtime yet.
        agent.log("probe tcp_connect")?;
        agent.signal(libc::SIGHUP)?;
        agent.signal(signal)?;
        eventually(SOON, "the end", || {
            Ok(if agent.is_running()? { Look::NotYet("it runs".to_owned()) } else { Look::Done(()) })
        })?;
        agent.log("ending")?;
    }
    Ok(())
}

/// The kernel gives a signal of the process to whichever thread is at hand.
#[test]
fn a_signal_is_heeded_whichever_thread_it_reaches() -> Result<()> {
    let mut agent = Agent::start("")?;
    agent.wait_ready()?;
    let hangup = 1_u64 << (libc::SIGHUP - 1);
    let mut reached = 0;
    for (name, fields) in threads(agent.pid())? {
        if u64::from_str_radix(&fields["SigBlk"], 16)? & hangup != 0 {
            continue;
        }
        let mark = agent.stderr.mark();
        agent.signal_thread(fields["Pid"].parse()?, libc::SIGHUP)?;
        agent.log_from(mark, "read again").with_context(|| name.clone())?;
        reached += 1;
    }
    ensure!(reached > 2, "{reached} threads take signals");
    agent.stop()
}

#[test]
fn another_user_with_five_capabilities_is_enough() -> Result<()> {
    let mut agent = Start::with("").as_nobody_with(&ALL).start()?;
    agent.wait_ready()?;
    counts(&agent)?;
    wait_for_scopes(&agent)?;
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    ensure!(event["cgroup"] == cgroup.path() && event["scope"] == "memcg", "{event}");
    // At 3 and beyond, which some distributions' kernels have, classic tracepoints take CAP_SYS_ADMIN.
    if paranoid()? <= 2 {
        ensure!(event["anon_rss_bytes"].as_u64() > Some(0), "{event}");
    }
    for (name, fields) in threads(agent.pid())? {
        let kept = if name.starts_with("galen-links ") { vec![2, 19] } else { vec![2] };
        ensure!(fields["CapPrm"] == mask(&kept) && fields["Seccomp"] == "2", "{name}: {fields:?}");
    }
    agent.stop()
}

fn paranoid() -> Result<i32> {
    Ok(fs::read_to_string("/proc/sys/kernel/perf_event_paranoid")?.trim().parse()?)
}

fn without(missing: u32) -> Result<Agent> {
    let rest: Vec<u32> = ALL.into_iter().filter(|number| *number != missing).collect();
    Start::with("").as_nobody_with(&rest).start()
}

#[test]
fn without_bpf_or_perfmon_it_says_which_it_wants_and_answers() -> Result<()> {
    for missing in [BPF, PERFMON] {
        let mut agent = without(missing)?;
        says(&agent, &["nothing is observed", "CAP_BPF and CAP_PERFMON"])?;
        ensure!(agent.get("/readyz")?.status == 503);
        ensure!(agent.get("/metrics")?.status == 200);
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn without_dac_read_search_other_hooks_are_used_and_cgroups_are_searched_for() -> Result<()> {
    let mut agent = without(DAC_READ_SEARCH)?;
    agent.wait_ready()?;
    says(&agent, &["tracing", "CAP_DAC_READ_SEARCH"])?;
    counts(&agent)?;
    agent.stop()
}

#[test]
fn without_sys_ptrace_everything_is_counted() -> Result<()> {
    let mut agent = without(SYS_PTRACE)?;
    agent.wait_ready()?;
    counts(&agent)?;
    agent.stop()
}

#[test]
fn without_syslog_only_the_scope_of_a_kill_is_unknown() -> Result<()> {
    ensure!(paranoid()? > 1, "here everybody may see the kernel's addresses: set perf_event_paranoid to 2");
    let mut agent = without(SYSLOG)?;
    agent.wait_ready()?;
    let cgroup = small_cgroup()?;
    let pid = oom(&cgroup)?;
    let event = agent.event("oom_kill", |event| event["victim_pid"] == pid)?;
    ensure!(event["cgroup"] == cgroup.path() && event["scope"] == "unknown", "{event}");
    agent.stop()
}

#[test]
fn doctor_tells_each_capability_and_what_is_lost() -> Result<()> {
    let done = run_galen(&["doctor", "--output", "json"])?;
    let report: Value = serde_json::from_str(&done.stdout)?;
    let table = report["capabilities"].as_array().context("no table")?;
    for name in ["CAP_BPF", "CAP_PERFMON", "CAP_DAC_READ_SEARCH", "CAP_SYS_PTRACE", "CAP_SYSLOG"] {
        let row = table.iter().find(|row| row["capability"] == name).context(name)?;
        ensure!(row["have"] == true && row["needed"] == true, "{row}");
        ensure!(row["lost_without_it"].as_str().is_some_and(|lost| !lost.is_empty()), "{row}");
    }
    let sandbox = report["sandbox"].as_array().context("no sandbox")?;
    ensure!(sandbox.len() == 3 && sandbox.iter().all(|part| part["state"] == "ok"), "{sandbox:?}");
    let folder = TempDir::with_prefix("galen-test-")?;
    let done = as_nobody(folder.path(), &["doctor"])?;
    ensure!(done.code() == 1, "{}", done.stdout);
    let row = done.stdout.lines().find(|line| line.contains("CAP_SYSLOG")).context("CAP_SYSLOG")?;
    ensure!(row.contains("missing"), "{row}");
    ensure!(done.stdout.contains("the scope of OOM kills is `unknown`"), "{}", done.stdout);
    Ok(())
}

/// Runs galen as `nobody`, from a copy that everybody can reach.
fn as_nobody(folder: &Path, arguments: &[&str]) -> Result<Finished> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let binary = folder.join("galen");
    if !binary.exists() {
        fs::copy(galen_path()?, &binary)?;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(binary).args(arguments);
    finish(&mut command, SOON)
}

#[test]
fn the_socket_answers_root_and_refuses_others() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let mut agent = Agent::start("")?;
    let path = agent.socket();
    let socket = path.to_str().context("UTF-8")?;
    let done = run_galen(&["status", "--socket", socket, "--output", "json"])?;
    ensure!(serde_json::from_str::<Value>(&done.stdout)?["readiness"]["ready"] == true, "{}", done.stdout);
    let mode = fs::metadata(&path)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "{mode:o}");

    // By its mode they cannot even connect.
    fs::set_permissions(path.parent().context("a folder")?, fs::Permissions::from_mode(0o755))?;
    let done = as_nobody(folder.path(), &["status", "--socket", socket])?;
    ensure!(done.code() == 1 && done.stderr.contains(socket), "{} {}", done.status, done.stderr);
    ensure!(agent.metrics()?.sum("galen_api_peers_refused_total", &[]) == 0.0);
    // A mode that somebody changed lets them connect, and no further.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    let done = as_nobody(folder.path(), &["status", "--socket", socket])?;
    ensure!(done.code() == 1 && done.stderr.contains("this socket is for root"), "{}", done.stderr);
    ensure!(done.stderr.lines().count() == 1, "one sentence: {}", done.stderr);
    agent.metric_becomes("galen_api_peers_refused_total", &[], 1)?;
    agent.stop()
}

#[test]
fn the_socket_answers_the_configured_group() -> Result<()> {
    let folder = TempDir::with_prefix("galen-test-")?;
    let mut agent = Agent::start("api: { group: \"65534\" }\n")?;
    let path = agent.socket();
    fs::set_permissions(path.parent().context("a folder")?, fs::Permissions::from_mode(0o755))?;
    let socket = path.to_str().context("UTF-8")?;
    let done = as_nobody(folder.path(), &["status", "--socket", socket, "--output", "json"])?;
    ensure!(done.stdout.contains("\"ready\":true"), "{} {}", done.stdout, done.stderr);
    // As a further group of another user, too.
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65533", "--regid=65533", "--groups=65534"]).arg(folder.path().join("galen"));
    let done = finish(command.args(["status", "--socket", socket, "--output", "json"]), SOON)?;
    ensure!(done.stdout.contains("\"ready\":true"), "{} {}", done.stdout, done.stderr);
    agent.stop()
}
