//! The galen binary on this kernel, as a user has it: every test starts the real agent and makes what it
//! sees happen.
//!
//! Needs root, `ip` (iproute2), containerd with runc, a Prometheus server, nginx, dnsmasq, Python with grpcio, and a memory controller. Each test has a state folder, a port and cgroups of
//! its own; what another process on the machine does is in other cgroups and disturbs none of them.

mod bad_bytes;
mod bad_host;
mod bad_input;
mod bounded;
mod command_line;
mod connect_phases;
mod destinations;
mod file_write;
mod flood;
mod healing;
mod heaviest;
mod hooks;
mod http;
mod identity;
mod incidents;
mod inspection;
mod inspection_http2;
mod inspection_json;
mod kernels;
mod lifecycle;
mod many_cgroups;
mod oom_kill;
mod output;
mod pins;
mod privilege;
mod prometheus;
mod reload;
mod restarts;
mod signals;
mod subscribers;
mod tcp_connect;
mod validate;
mod without_types;
