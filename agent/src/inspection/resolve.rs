//! Names → addresses, as resolv.conf(5) and hosts(5) say, without a thread for each question.
//!
//! The C library's resolver blocks, some 10 s for a name server that is gone: five thousand dead names would take all
//! threads from the living ones. Nothing is cached: a cold check looks its name up each time.

use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use domain::base::iana::{Rcode, Rtype};
use domain::base::name::Name;
use domain::rdata::{A, Aaaa};
use domain::resolv::StubResolver;
use domain::resolv::stub::Answer;
use domain::resolv::stub::conf::ResolvConf;

use super::outcome::{ErrorCode, Failure};
use crate::input;

/// How often the files are looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// Looks names up.
#[derive(Debug)]
pub struct Resolver {
    folder: PathBuf,
    state: RefCell<Rc<State>>,
    looked: Cell<Instant>,
}

/// What the two files say.
#[derive(Debug)]
struct State {
    changed: [Option<SystemTime>; 2],
    hosts: Vec<(IpAddr, Vec<String>)>,
    stub: StubResolver,
    search: Vec<String>,
    ndots: usize,
}

impl Resolver {
    /// By `resolv.conf` and `hosts` in this folder, which is `/etc` but in tests.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        let state = RefCell::new(Rc::new(State::read(folder)));
        Self { folder: folder.to_path_buf(), state, looked: Cell::new(Instant::now()) }
    }

    /// The addresses of a host with this port, at least one. Waits as long as it takes: the caller has a deadline.
    ///
    /// # Errors
    /// [`ErrorCode::ResolveNotFound`] or [`ErrorCode::ResolveFailed`].
    pub async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
        let state = self.state();
        let known = state.of_hosts(host);
        let found = if known.is_empty() { state.ask(host).await? } else { known };
        Ok(found.into_iter().take(ADDRESSES_MAX).map(|ip| SocketAddr::new(ip, port)).collect())
    }

    fn state(&self) -> Rc<State> {
        if self.looked.get().elapsed() >= LOOK_EVERY {
            self.looked.set(Instant::now());
            if changed(&self.folder) != self.state.borrow().changed {
                self.state.replace(Rc::new(State::read(&self.folder)));
            }
        }
        Rc::clone(&self.state.borrow())
    }
}

fn changed(folder: &Path) -> [Option<SystemTime>; 2] {
    ["resolv.conf", "hosts"]
        .map(|name| std::fs::metadata(folder.join(name)).and_then(|meta| meta.modified()).ok())
}

impl State {
    fn read(folder: &Path) -> Self {
        let changed = changed(folder);
        let mut conf = ResolvConf::new();
        let text = input::read_text(&folder.join("resolv.conf")).unwrap_or_default();
        if let Err(error) = conf.parse(&mut text.as_bytes()) {
            tracing::warn!("resolv.conf: {error}; what stands before it is taken");
        }
        conf.finalize();
        let search = conf.options.search.as_slice().iter().map(ToString::to_string).collect();
        let ndots = conf.options.ndots;
        let hosts = parse_hosts(&input::read_text(&folder.join("hosts")).unwrap_or_default());
        Self { changed, hosts, stub: StubResolver::from_conf(conf), search, ndots }
    }

    fn of_hosts(&self, host: &str) -> Vec<IpAddr> {
        let host = host.trim_end_matches('.');
        let is_it = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case(host));
        let mut found: Vec<IpAddr> =
            self.hosts.iter().filter(|(_, names)| is_it(names)).map(|(ip, _)| *ip).collect();
        // RFC 6761, section 6.3, also where nobody wrote it down.
        if found.is_empty() && (host.eq_ignore_ascii_case("localhost") || host.ends_with(".localhost")) {
            found = vec![IpAddr::from([127, 0, 0, 1]), IpAddr::from(std::net::Ipv6Addr::LOCALHOST.octets())];
        }
        found
    }

    /// Asks for the name under each suffix in the order of resolv.conf(5).
    async fn ask(&self, host: &str) -> Result<Vec<IpAddr>, Failure> {
        let mut names = Vec::new();
        if !host.ends_with('.') {
            names.extend(
                self.search
                    .iter()
                    .filter(|suffix| suffix.as_str() != ".")
                    .map(|suffix| format!("{host}.{}", suffix.trim_end_matches('.'))),
            );
        }
        let dots = host.trim_end_matches('.').matches('.').count();
        let at = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(at, host.trim_end_matches('.').to_owned());
        let mut failure = None;
        for name in names {
            match self.ask_for(&name).await {
                Ok(found) if !found.is_empty() => return Ok(found),
                Ok(_) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure
            .unwrap_or_else(|| Failure::new(ErrorCode::ResolveNotFound, format!("`{host}` has no address"))))
    }

    /// Both kinds of addresses, those of version 4 first; an error only when neither came.
    async fn ask_for(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        let wrong = |_| Failure::new(ErrorCode::ResolveNotFound, format!("`{name}` is no name"));
        let name = Name::<Vec<u8>>::from_str(name).map_err(wrong)?;
        let (four, six) =
            tokio::join!(self.stub.query((&name, Rtype::A)), self.stub.query((&name, Rtype::AAAA)));
        let mut found = Vec::new();
        let mut failure = None;
        for answer in [four, six] {
            match answer.map_err(|error| failed(&name, &error)).and_then(|answer| read(&name, &answer)) {
                Ok(more) => found.extend(more),
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            Some(failure) if found.is_empty() => Err(failure),
            _ => Ok(found),
        }
    }
}

fn failed(name: &Name<Vec<u8>>, error: &std::io::Error) -> Failure {
    let code = if error.kind() == ErrorKind::TimedOut {
        ErrorCode::ResolveTimeout
    } else {
        ErrorCode::ResolveFailed
    };
    Failure::new(code, format!("`{name}`: {error}"))
}

fn read(name: &Name<Vec<u8>>, answer: &Answer) -> Result<Vec<IpAddr>, Failure> {
    match answer.header().rcode() {
        Rcode::NOERROR => {}
        Rcode::NXDOMAIN => return Ok(Vec::new()),
        other => {
            let said = format!("`{name}`: the name server says {other}");
            return Err(Failure::new(ErrorCode::ResolveFailed, said));
        }
    }
    let Ok(records) = answer.answer() else {
        let said = format!("`{name}`: the name server's answer cannot be read");
        return Err(Failure::new(ErrorCode::ResolveFailed, said));
    };
    let four = records.limit_to::<A>().flatten().map(|record| IpAddr::V4(record.data().addr()));
    let six = records.limit_to::<Aaaa>().flatten().map(|record| IpAddr::V6(record.data().addr()));
    Ok(four.chain(six).collect())
}

/// hosts(5): an address and its names a line.
fn parse_hosts(text: &str) -> Vec<(IpAddr, Vec<String>)> {
    let line = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let ip = words.next()?.parse().ok()?;
        Some((ip, words.map(str::to_owned).collect()))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(hosts: &str, conf: &str) -> (tempfile::TempDir, Resolver) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("hosts"), hosts).unwrap();
        std::fs::write(folder.path().join("resolv.conf"), conf).unwrap();
        let resolver = Resolver::new(folder.path());
        (folder, resolver)
    }

    #[tokio::test]
    async fn hosts_come_before_name_servers() {
        let (_folder, resolver) = with(
            "# c\n10.0.0.7 db db.local # x\n10.0.0.8 other\nnonsense db\nfe80::1 db\n",
            "nameserver 127.0.0.1\n",
        );
        let found = resolver.look_up("DB", 5432).await.unwrap();
        assert_eq!(found, ["10.0.0.7:5432".parse().unwrap(), "[fe80::1]:5432".parse().unwrap()]);
        let found = resolver.look_up("localhost", 1).await.unwrap();
        assert_eq!(found[0], "127.0.0.1:1".parse().unwrap());
    }
}
