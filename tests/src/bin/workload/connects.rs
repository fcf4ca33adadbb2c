//! Connects that need more than a `TcpStream`.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::{fs, io, mem, thread};

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

/// Connects that their caller does not wait for: each is taken back unanswered, by `close` or by `disconnect`.
pub(crate) fn given_up(addr: SocketAddr, how: &str, times: u64) -> Result<Value> {
    for _ in 0..times {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).context("no socket")?;
        socket.set_nonblocking(true)?;
        let begun = socket.connect(&addr.into());
        ensure!(begun.is_err_and(|error| error.raw_os_error() == Some(libc::EINPROGRESS)), "not begun");
        match how {
            "close" => drop(socket),
            "disconnect" => disconnect(&socket)?,
            _ => anyhow::bail!("`{how}` is no way to give up"),
        }
    }
    Ok(json!({"given_up": times}))
}

/// A connect to no family takes the one under way back (connect(2)).
fn disconnect(socket: &Socket) -> Result<()> {
    // SAFETY: an address is plain bytes, for which zero is valid; AF_UNSPEC is 0.
    let nowhere: libc::sockaddr = unsafe { mem::zeroed() };
    let length = mem::size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is of exactly `length` bytes and outlives the call.
    let done = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context("disconnect") }
}

/// Three connects with TCP Fast Open to a listener of its own: one that asks for the cookie, one that sends data
/// with it, and one that is held back for `pause` until there is data.
pub(crate) fn fast_open(pause: Duration) -> Result<Value> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).context("no socket")?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).context("bind")?;
    set_tcp(&listener, libc::TCP_FASTOPEN, 8).context("TCP_FASTOPEN")?;
    listener.listen(8).context("listen")?;
    let address = listener.local_addr()?;
    let mut held = Vec::new();
    for _ in 0..2 {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.send_to_with_flags(b"hello", &address, libc::MSG_FASTOPEN).context("MSG_FASTOPEN")?;
        held.push(socket);
    }
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    set_tcp(&socket, libc::TCP_FASTOPEN_CONNECT, 1).context("TCP_FASTOPEN_CONNECT")?;
    socket.connect(&address).context("a connect that is held back")?;
    thread::sleep(pause);
    socket.send(b"hello").context("the data that it waits for")?;
    Ok(json!({"established": 3, "port": address.as_socket().map(|to| to.port())}))
}

fn set_tcp(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = mem::size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option's value is an int of exactly `length` bytes that outlives the call.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, option, (&raw const value).cast(), length)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
