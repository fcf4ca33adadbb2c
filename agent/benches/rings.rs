//! How many records a second go from a kernel's ring to decoded events without loss: on one CPU a program in the
//! kernel puts records of writes into a ring, on another the reader and the decoder of the agent take them out.
//!
//! The program offers records by the batch, as fast as there is room for them: system calls make no more than a
//! million a second on one CPU, which says little of a ring. Prints one line of JSON: `events`, `events_per_s`,
//! `wrong`, how many were no event or not the one that was put in. Needs root.

#![allow(clippy::expect_used, reason = "a measurement that cannot be made ends with the reason")]

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{Array, Map, MapData, RingBuf};
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_RINGBUF};
use galen_agent::event::decode::{RawBody, decode};
use galen_common::file_write::{FileWriteRecord, Reason};
use galen_common::record::{Header, RecordKind, header_flags};

const RING_BYTES: u32 = 1 << 20;
const RECORD_BYTES: usize = size_of::<FileWriteRecord>();
/// Records a run of the program offers.
const BATCH: i32 = 64;
const TIME: Duration = Duration::from_secs(3);
const INODE: u64 = 4711;

const PROG_LOAD: i64 = 5;
const PROG_TEST_RUN: i64 = 10;
const RAW_TRACEPOINT: u32 = 17;

/// `struct bpf_insn` (include/uapi/linux/bpf.h).
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, registers: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers, offset, immediate }
}

/// Returns how many of a batch found no room.
fn program(ring: i32, record: i32) -> [Instruction; 13] {
    const LD_IMM64: u8 = 0x18;
    const MOV_IMM: u8 = 0xb7;
    const MOV_REG: u8 = 0xbf;
    [
        instruction(MOV_IMM, 6, 0, BATCH),
        // bpf_ringbuf_output(ring, record, RECORD_BYTES, BPF_RB_NO_WAKEUP): the first by BPF_PSEUDO_MAP_FD, the
        // second by BPF_PSEUDO_MAP_VALUE.
        instruction(LD_IMM64, 1 | 1 << 4, 0, ring),
        instruction(0, 0, 0, 0),
        instruction(LD_IMM64, 2 | 2 << 4, 0, record),
        instruction(0, 0, 0, 0),
        instruction(MOV_IMM, 3, 0, RECORD_BYTES as i32),
        instruction(MOV_IMM, 4, 0, 1),
        instruction(0x85, 0, 0, 130),
        // No room: out.
        instruction(0x55, 0, 2, 0),
        instruction(0x07, 6, 0, -1),
        instruction(0x55, 6, -10, 0),
        instruction(MOV_REG, 6 << 4, 0, 0),
        instruction(0x95, 0, 0, 0),
    ]
}

fn bpf(command: i64, attributes: &mut [u64; 16]) -> Result<i64, std::io::Error> {
    // SAFETY: the attributes are as long as is told, and what they point to outlives the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), 128) };
    if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(done) }
}

fn load(instructions: &[Instruction]) -> i64 {
    let licence = c"GPL";
    let mut attributes = [0; 16];
    attributes[0] = u64::from(RAW_TRACEPOINT) | (instructions.len() as u64) << 32;
    attributes[1] = instructions.as_ptr() as u64;
    attributes[2] = licence.as_ptr() as u64;
    bpf(PROG_LOAD, &mut attributes).expect("the program does not load; is this root?")
}

/// Runs the program once on this CPU; gives how many records found no room.
fn run(program: i64) -> u32 {
    let mut attributes = [program as u64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bpf(PROG_TEST_RUN, &mut attributes).expect("the program does not run");
    (attributes[0] >> 32) as u32
}

fn pin(cpu: usize) {
    // SAFETY: a CPU set is plain bits, for which zero is valid; it outlives the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn record() -> [u8; RECORD_BYTES] {
    let mut comm = [0; 16];
    comm[..5].copy_from_slice(b"bench");
    let header = Header {
        kind: RecordKind::FileWrite as u32,
        size_bytes: RECORD_BYTES as u32,
        time_mono_ns: 1,
        cgroup_id: 2,
        pid: 3,
        tid: 3,
        uid: 0,
        flags: header_flags::HAS_TASK | header_flags::HAS_CGROUP,
        comm,
    };
    let record = FileWriteRecord {
        header,
        latency_ns: 4,
        inode: INODE,
        returned: 5,
        dev: 6,
        fd: 7,
        reason: Reason::All as u32,
        path_len: 0,
        generation: 0,
        reserved: 0,
    };
    // SAFETY: the record is plain numbers without padding, as its layout is told to the kernel side too.
    unsafe { std::mem::transmute(record) }
}

fn map(kind: u32, key_bytes: u32, value_bytes: u32, entries: u32) -> MapData {
    let definition = aya_obj::Map::new_from_params(kind, key_bytes, value_bytes, entries, 0);
    MapData::create(definition, "bench", None).expect("no map; is this root?")
}

fn main() {
    let record_map = map(BPF_MAP_TYPE_ARRAY as u32, 4, RECORD_BYTES as u32, 1);
    let record_fd = record_map.fd().as_fd().try_clone_to_owned().expect("a descriptor");
    let mut array: Array<_, [u8; RECORD_BYTES]> = Map::Array(record_map).try_into().expect("an array");
    array.set(0, record(), 0).expect("the record");
    let ring_map = map(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, RING_BYTES);
    let ring_fd = ring_map.fd().as_fd().try_clone_to_owned().expect("a descriptor");
    let mut ring = RingBuf::try_from(Map::RingBuf(ring_map)).expect("a ring");
    let program = load(&program(ring_fd.as_raw_fd(), record_fd.as_raw_fd()));
    let ending = AtomicBool::new(false);
    let (mut events, mut wrong, mut offered) = (0_u64, 0_u64, 0_u64);
    let started = Instant::now();
    thread::scope(|scope| {
        let producer = scope.spawn(|| {
            pin(0);
            let mut offered = 0_u64;
            while !ending.load(Ordering::Relaxed) {
                let left = run(program);
                offered += u64::from(BATCH.unsigned_abs() - left);
                if left > 0 {
                    std::hint::spin_loop();
                }
            }
            offered
        });
        pin(1);
        let mut read = |until_empty: bool| {
            let end = started + TIME;
            let mut batch = 0_u32;
            loop {
                let Some(bytes) = ring.next() else {
                    if until_empty || Instant::now() >= end {
                        return;
                    }
                    std::hint::spin_loop();
                    continue;
                };
                let event = decode(&bytes);
                drop(bytes);
                events += 1;
                let is_right = matches!(&event, Ok(raw) if matches!(&raw.body, RawBody::FileWrite(write) if write.inode == INODE));
                wrong += u64::from(!is_right);
                std::hint::black_box(event).ok();
                batch += 1;
                if batch.is_multiple_of(1024) && !until_empty && Instant::now() >= end {
                    return;
                }
            }
        };
        read(false);
        ending.store(true, Ordering::Relaxed);
        offered = producer.join().expect("the producer ends");
        read(true);
    });
    let per_s = events as f64 / started.elapsed().as_secs_f64();
    println!("{{\"events\":{events},\"offered\":{offered},\"wrong\":{wrong},\"events_per_s\":{per_s:.0}}}");
}
