//! Connects that need more than a `TcpStream`.

use std::net::SocketAddr;
use std::{fs, io};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

/// A socket that connects to the address it is bound to: its own SYN answers it.
pub(crate) fn to_itself() -> Result<Value> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("no socket")?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).context("bind")?;
    let own = socket.local_addr()?;
    socket.connect(&own).context("a connect to itself")?;
    Ok(json!({"established": 1}))
}

/// Two connects to one address where one source port is free: the second finds none.
pub(crate) fn without_port(addr: SocketAddr) -> Result<Value> {
    let namespace = |of: &str| {
        let link = format!("/proc/{of}/ns/net");
        fs::read_link(&link).with_context(|| format!("cannot read {link}"))
    };
    ensure!(
        namespace(&std::os::unix::process::parent_id().to_string())? != namespace("thread-self")?,
        "this narrows the port range of the network namespace: --netns FILE"
    );
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    fs::write(range, "40000 40000").with_context(|| format!("cannot write {range}"))?;
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let (first, second) = (open()?, open()?);
    let begun = first.connect(&addr.into());
    ensure!(begun.is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)), "not begun");
    let refused = second.connect(&addr.into());
    ensure!(refused.is_err_and(|error| error.raw_os_error() == Some(libc::EADDRNOTAVAIL)), "a second port");
    Ok(json!({"established": 0}))
}
