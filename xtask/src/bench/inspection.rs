//! Area `inspection`: checks a second, and a CPU-second, beside blackbox_exporter on the same work.
//!
//! Who checks has the first CPU, who is checked and who asks the peer have the others. Checks are counted by who
//! made them: `inspec_checks_total`, and the peer's answered requests.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::agent::{Agent, Options, sum};
use super::{Better, Row, http, process, workload};
use crate::paths;
use crate::setup::{blackbox_exporter, server};

const LISTEN_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(6);
/// Requests to the peer at once, as many as its recipe has.
const ASKERS: usize = 16;

/// What is checked.
#[derive(Clone, Copy)]
enum Work {
    ColdHttp,
    WarmHttp,
    Tcp,
}

/// What one measurement gave.
struct Measured {
    per_second: f64,
    per_cpu_second: f64,
}

/// Measures the area.
pub(super) fn run(quick: bool) -> Result<Vec<Row>> {
    let (rounds, seconds) = if quick { (3, 3) } else { (7, 8) };
    let nginx = Nginx::start()?;
    let peer = match Blackbox::start() {
        Ok(peer) => Some(peer),
        Err(error) => {
            eprintln!("bench: without blackbox_exporter: {error:#}");
            None
        }
    };
    let mut rows = Vec::new();
    let works = [
        (Work::ColdHttp, "cold_http", Some(("http_2xx", format!("http://{}/", nginx.addr))), 10_000.0),
        (Work::WarmHttp, "warm_http", None, 60_000.0),
        (Work::Tcp, "tcp", Some(("tcp", nginx.addr.to_string())), 0.0),
    ];
    for (work, name, asked, goal) in works {
        let (mut own, mut own_cpu, mut others, mut others_cpu) = (vec![], vec![], vec![], vec![]);
        for _ in 0..rounds {
            let measured = checks(work, nginx.addr, Duration::from_secs(seconds))?;
            own.push(measured.per_second);
            own_cpu.push(measured.per_cpu_second);
            if let (Some(peer), Some((module, target))) = (&peer, &asked) {
                let measured = peer.checks(module, target, Duration::from_secs(seconds))?;
                others.push(measured.per_second);
                others_cpu.push(measured.per_cpu_second);
            }
        }
        let row = Row::of(format!("{name}_checks_per_second"), "1/s", Better::Higher, &own);
        let row = row.map(|row| row.peer("blackbox_exporter", &others));
        rows.extend(row.map(|row| if goal > 0.0 { row.goal(goal) } else { row }));
        let row = Row::of(format!("{name}_checks_per_cpu_second"), "1/s", Better::Higher, &own_cpu);
        rows.extend(row.map(|row| {
            let row = row.peer("blackbox_exporter", &others_cpu);
            match row.peers.get("blackbox_exporter").copied() {
                Some(peer) => row.goal(4.0 * peer),
                None => row,
            }
        }));
    }
    if let Some(peer) = peer {
        peer.stop()?;
    }
    nginx.stop()?;
    Ok(rows)
}

/// Has an agent check as fast as it can for some time.
fn checks(work: Work, addr: SocketAddr, time: Duration) -> Result<Measured> {
    // More than it can do: as much runs at once as may, and the rest is shed.
    let (targets, interval_ms) = match work {
        Work::ColdHttp | Work::Tcp => (400, 10),
        Work::WarmHttp => (1000, 10),
    };
    let mut config = format!("inspection:\n  interval: {interval_ms}ms\n  timeout: 2s\n  targets:\n");
    for number in 0..targets {
        let check = match work {
            Work::ColdHttp => format!("http: {{ url: \"http://{addr}/\" }}"),
            Work::WarmHttp => format!("warm: true, http: {{ url: \"http://{addr}/\" }}"),
            Work::Tcp => format!("tcp: {{ address: \"{addr}\" }}"),
        };
        let _ = writeln!(config, "    - {{ name: t{number}, {check} }}");
    }
    // Only the inspection is measured: no program of the kernel side is loaded.
    config.push_str("kernel:\n  tcp_connect: { enabled: false }\n  file_write: { enabled: false }\n  oom_kill: { enabled: false }\n");
    let agent = Agent::start(Options { config: &config, ..Options::default() })?;
    pin(agent.pid(), "0")?;
    thread::sleep(Duration::from_millis(500));
    let ended = |agent: &Agent| -> Result<f64> {
        Ok(sum(&agent.metrics()?, "inspec_checks_total", "result", "success"))
    };
    let (before, cpu_before, started) = (ended(&agent)?, process::cpu(agent.pid())?, Instant::now());
    thread::sleep(time);
    let (after, cpu, took) = (ended(&agent)?, process::cpu(agent.pid())? - cpu_before, started.elapsed());
    let failed = sum(&agent.metrics()?, "inspec_checks_total", "result", "failed");
    agent.stop()?;
    if failed > (after - before) / 100.0 {
        bail!("{failed} checks failed of {}", after - before);
    }
    Ok(measured(after - before, took, cpu))
}

fn measured(checks: f64, took: Duration, cpu: Duration) -> Measured {
    Measured {
        per_second: checks / took.as_secs_f64(),
        per_cpu_second: checks / cpu.as_secs_f64().max(0.001),
    }
}

/// Keeps all threads of a process on these CPUs.
fn pin(pid: u32, cpus: &str) -> Result<()> {
    let mut command = Command::new("taskset");
    command.args(["--all-tasks", "--cpu-list", "--pid", cpus, &pid.to_string()]);
    crate::process::output(&mut command).map(drop).context("the process cannot be kept on a CPU")
}

/// The CPUs of who does not check.
fn other_cpus() -> String {
    let count = thread::available_parallelism().map_or(1, usize::from);
    if count > 1 { format!("1-{}", count - 1) } else { "0".to_owned() }
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free loopback port")?.local_addr()?)
}

/// Waits until somebody listens.
fn listening(addr: SocketAddr, name: &str) -> Result<()> {
    let limit = Instant::now() + LISTEN_LIMIT;
    while TcpStream::connect(addr).is_err() {
        if Instant::now() > limit {
            bail!("{name} does not listen on {addr}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Who is checked.
struct Nginx {
    child: Child,
    addr: SocketAddr,
}

impl Nginx {
    fn start() -> Result<Self> {
        let (program, addr) = (server::program(&server::NGINX)?, free()?);
        let folder = workload::directory()?.join("nginx");
        paths::ensure_dir(&folder)?;
        let at = folder.display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/log warn;\n\
             events {{ worker_connections 8192; }}\n\
             http {{ access_log off; keepalive_requests 100000000;\n\
             client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f;\n\
             uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             server {{ listen {addr} backlog=4096; location / {{ return 200 \"ok\\n\"; }} }} }}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).args(["-e", "stderr"]).stdin(Stdio::null());
        let child = command.spawn().context("nginx cannot be started")?;
        let nginx = Self { child, addr };
        listening(addr, "nginx")?;
        pin(nginx.child.id(), &other_cpus())?;
        Ok(nginx)
    }

    fn stop(mut self) -> Result<()> {
        process::end(&mut self.child, libc::SIGTERM, "nginx", STOP_LIMIT)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The peer.
struct Blackbox {
    child: Child,
    addr: SocketAddr,
}

impl Blackbox {
    fn start() -> Result<Self> {
        let (program, addr) = (blackbox_exporter::find_or_build()?, free()?);
        let file = workload::directory()?.join("blackbox.yml");
        let modules = "modules:\n  http_2xx: { prober: http, timeout: 5s, http: { preferred_ip_protocol: ip4 } }\n  \
                       tcp: { prober: tcp, timeout: 2s }\n";
        fs::write(&file, modules).with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(program);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--web.listen-address={addr}")).arg("--log.level=error").env("GOMAXPROCS", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("blackbox_exporter cannot be started")?;
        let peer = Self { child, addr };
        listening(addr, "blackbox_exporter")?;
        pin(peer.child.id(), "0")?;
        Ok(peer)
    }

    /// Asks for checks as fast as they are answered.
    fn checks(&self, module: &str, target: &str, time: Duration) -> Result<Measured> {
        let path = format!("/probe?module={module}&target={target}");
        let (_, body) = http::get(self.addr, &path)?;
        if !body.contains("\nprobe_success 1") {
            bail!("blackbox_exporter's check of {target} fails");
        }
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let askers: Vec<_> = (0..ASKERS)
            .map(|_| {
                let (addr, path) = (self.addr, path.clone());
                let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
                thread::spawn(move || ask(addr, &path, &stop, &count))
            })
            .collect();
        pin(std::process::id(), &other_cpus())?;
        thread::sleep(Duration::from_millis(500));
        let (before, cpu_before, started) =
            (count.load(Ordering::Relaxed), process::cpu(self.child.id())?, Instant::now());
        thread::sleep(time);
        let (after, cpu, took) =
            (count.load(Ordering::Relaxed), process::cpu(self.child.id())? - cpu_before, started.elapsed());
        stop.store(true, Ordering::Relaxed);
        for asker in askers {
            match asker.join() {
                Ok(result) => result?,
                Err(_) => bail!("a thread that asks blackbox_exporter panicked"),
            }
        }
        pin(std::process::id(), "0-1023")?;
        Ok(measured((after - before) as f64, took, cpu))
    }

    fn stop(mut self) -> Result<()> {
        process::end(&mut self.child, libc::SIGTERM, "blackbox_exporter", STOP_LIMIT)
    }
}

impl Drop for Blackbox {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// One connection that asks again and again.
fn ask(addr: SocketAddr, path: &str, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
    let stream = TcpStream::connect(addr).context("no connection to blackbox_exporter")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nAccept: text/plain\r\n\r\n");
    let mut reader = BufReader::new(stream);
    while !stop.load(Ordering::Relaxed) {
        reader.get_mut().write_all(request.as_bytes())?;
        let (mut length, mut is_chunked, mut line) = (0, false, String::new());
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                bail!("blackbox_exporter closed a connection");
            }
            let low = line.trim_end().to_ascii_lowercase();
            if low.is_empty() {
                break;
            }
            if let Some(value) = low.strip_prefix("content-length:") {
                length = value.trim().parse().context("a length that is no number")?;
            }
            is_chunked |= low == "transfer-encoding: chunked";
        }
        if is_chunked {
            skip_chunks(&mut reader)?;
        } else {
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
        }
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn skip_chunks(reader: &mut BufReader<TcpStream>) -> Result<()> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim(), 16).context("a chunk without a size")?;
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk)?;
        if size == 0 {
            return Ok(());
        }
    }
}
