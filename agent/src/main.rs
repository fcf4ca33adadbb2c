//! The galen binary: glue over the library.
use galen_agent::{config, kernel};
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut c = config::Config::default();
    if let Some(v) = std::env::args().nth(1) {
        c.kernel.variant = match v.as_str() {
            "raw" => config::Variant::RawTp,
            "tp" => config::Variant::Tracepoint,
            _ => config::Variant::TpBtf,
        };
    }
    let h = kernel::cgroups::Hierarchies::find(&c.host.proc, &c.host.cgroup).unwrap();
    println!("{h:?}");
    let t = std::time::Instant::now();
    let mut core = match kernel::Core::start(&c.kernel, &c.host, &h) {
        Ok(c) => c,
        Err(e) => {
            println!("{e}");
            return;
        }
    };
    println!("{:?}", t.elapsed());
    for p in core.report.iter() {
        println!("{p:?}");
    }
    let secs: u64 = std::env::args().nth(2).map_or(2, |s| s.parse().unwrap());
    tokio::time::sleep(std::time::Duration::from_secs(secs)).await;
    let mut f = |b: &[u8]| println!("{:?}", galen_agent::event::decode::decode(b));
    core.rings.drain(20, &mut f);
    core.oom_ring.drain(&mut f);
    let r = core.counters.read().unwrap();
    for (k, c) in &r.cgroups {
        println!(
            "{k} conn {:?} w {} b {} e {} {:?} mean {}",
            c.connects,
            c.writes,
            c.write_bytes,
            c.write_errors,
            c.errnos,
            c.write_latency_ns.sum_ns / c.writes.max(1)
        );
    }
    println!("{:?}", r.fates);
    println!("{:?}", core.counters.programs());
    println!(
        "{}",
        std::fs::read_to_string("/proc/self/status")
            .unwrap()
            .lines()
            .filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM"))
            .collect::<String>()
    );
}
