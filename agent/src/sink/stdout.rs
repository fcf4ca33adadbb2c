//! Events on standard output.
//!
//! A thread of its own writes, so that a pipe nobody reads blocks that thread and nothing else. The queue
//! before it is bounded; what does not fit is counted by kind and told with a `lost` event once the
//! output moves again. A full disk is such an output too: what could not be written is tried again, from
//! the byte on where it stopped. Only an output that is gone ends the printing.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::losses::{self, Dropped, Teller};
use super::{Record, text};
use crate::config::Output;
use crate::event::Kind;

/// Events that wait to be written.
pub const QUEUE_MAX: usize = 8192;
/// The part of the queue that connects and writes leave to rarer events: a flood of writes must not cost
/// the one OOM kill.
const RESERVED: usize = 512;
/// A wake-up writes at most about this much at once.
const BATCH_BYTES: usize = 256 * 1024;
/// How long an output that refused to write is left alone.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The same for an output that only has no room just now, such as a pipe that does not block.
const FULL_RETRY_AFTER: Duration = Duration::from_millis(20);
/// Reason of the losses here.
pub const OUTPUT_FULL: &str = "output_full";

/// The writer thread and its queue.
#[derive(Debug)]
pub struct Stdout {
    shared: Arc<Shared>,
    done: oneshot::Receiver<()>,
}

/// Puts events into the queue; cheap to clone.
#[derive(Clone, Debug)]
pub struct Printer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    dropped: Dropped,
}

#[derive(Debug, Default)]
struct Queue {
    records: VecDeque<Arc<Record>>,
    ending: bool,
    /// Nobody reads any more: everything is discarded.
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stdout {
    /// Starts the thread that writes to standard output in the given form; `node` is the node's name in
    /// the `lost` events that it makes.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(output: Output, node: Arc<str>) -> io::Result<Self> {
        let form = match output {
            Output::Json => Form::Json,
            Output::Text => Form::Text { color: text::stdout_takes_color() },
            Output::None => Form::None,
        };
        // Without the line buffer of `io::stdout`, which hides how much of a failed write went out.
        let target = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Self::start_on(Box::new(target), form, node)
    }

    fn start_on(target: Box<dyn Write + Send>, form: Form, node: Arc<str>) -> io::Result<Self> {
        let queue = Queue { closed: matches!(form, Form::None), ..Queue::default() };
        let shared =
            Arc::new(Shared { queue: Mutex::new(queue), wake: Condvar::new(), dropped: Dropped::default() });
        let (sender, done) = oneshot::channel();
        let writer =
            Writer { shared: Arc::clone(&shared), target, form, teller: Teller::new(node, OUTPUT_FULL) };
        std::thread::Builder::new().name("galen-stdout".to_owned()).spawn(move || {
            if writer.run() {
                // The receiver is gone when shutdown gave up waiting.
                let _ = sender.send(());
            }
        })?;
        Ok(Self { shared, done })
    }

    /// A handle that prints.
    #[must_use]
    pub fn printer(&self) -> Printer {
        Printer(Arc::clone(&self.shared))
    }

    /// Writes what is queued and ends the thread; gives up after `deadline` and leaves the thread behind,
    /// since a write to a pipe nobody reads cannot be interrupted. Gives whether everything was written.
    pub async fn shutdown(self, deadline: Duration) -> bool {
        self.shared.lock().ending = true;
        self.shared.wake.notify_one();
        matches!(tokio::time::timeout(deadline, self.done).await, Ok(Ok(())))
    }
}

impl Printer {
    /// Queues `record`; never blocks. A full queue drops and counts it.
    pub fn print(&self, record: &Arc<Record>) {
        let kind = record.event().kind;
        let limit = match kind {
            Kind::TcpConnect | Kind::FileWrite => QUEUE_MAX - RESERVED,
            _ => QUEUE_MAX,
        };
        let mut queue = self.0.lock();
        if queue.closed || queue.ending {
            return;
        }
        if queue.records.len() >= limit {
            drop(queue);
            self.0.dropped.count(kind);
            return;
        }
        queue.records.push_back(Arc::clone(record));
        let first = queue.records.len() == 1;
        drop(queue);
        if first {
            self.0.wake.notify_one();
        }
    }

    /// Events that were dropped since the queue was full, by kind in the order of [`Kind::ALL`].
    #[must_use]
    pub fn dropped(&self) -> [u64; Kind::ALL.len()] {
        self.0.dropped.read()
    }
}

#[derive(Clone, Copy)]
enum Form {
    Text { color: bool },
    Json,
    None,
}

struct Writer {
    shared: Arc<Shared>,
    target: Box<dyn Write + Send>,
    form: Form,
    teller: Teller,
}

impl Writer {
    /// Gives whether all that anyone can read was written.
    fn run(mut self) -> bool {
        let mut batch = VecDeque::new();
        let mut buffer = String::new();
        loop {
            let ending = self.wait(&mut batch);
            for record in batch.drain(..) {
                self.format(&mut buffer, &record);
                if buffer.len() >= BATCH_BYTES
                    && let Some(end) = self.write(&mut buffer)
                {
                    return end;
                }
            }
            // First what was queued, so that what is told as lost was lost before now.
            if let Some(end) = self.write(&mut buffer) {
                return end;
            }
            for lost in self.teller.news(&self.shared.dropped, ending) {
                self.format(&mut buffer, &lost);
            }
            if let Some(end) = self.write(&mut buffer) {
                return end;
            }
            if ending {
                return true;
            }
        }
    }

    /// Takes all that is queued, and waits for it if need be; gives whether this was the last.
    fn wait(&self, batch: &mut VecDeque<Arc<Record>>) -> bool {
        let mut queue = self.shared.lock();
        while queue.records.is_empty() && !queue.ending {
            if self.teller.owes(&self.shared.dropped) {
                let (guard, timeout) = self
                    .shared
                    .wake
                    .wait_timeout(queue, losses::EVERY)
                    .unwrap_or_else(PoisonError::into_inner);
                queue = guard;
                if timeout.timed_out() {
                    break;
                }
            } else {
                queue = self.shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        }
        std::mem::swap(&mut queue.records, batch);
        queue.ending
    }

    fn format(&self, buffer: &mut String, record: &Record) {
        match self.form {
            Form::Text { color } => text::write_event(buffer, record.event(), color),
            Form::Json => {
                // JSON by serde is UTF-8.
                buffer.push_str(&String::from_utf8_lossy(&record.json()));
                buffer.push('\n');
            }
            Form::None => {}
        }
    }

    /// Writes the buffer and empties it, however long that takes. Gives something when printing ends here:
    /// `true` when nobody reads any more, `false` when the agent ends and the output still refuses.
    fn write(&mut self, buffer: &mut String) -> Option<bool> {
        let mut rest = buffer.as_bytes();
        let mut refused = false;
        while !rest.is_empty() {
            let error = match self.target.write(rest) {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    if std::mem::take(&mut refused) {
                        tracing::info!("standard output can be written to again");
                    }
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => error,
            };
            if is_gone(&error) {
                self.close(&error);
                return Some(true);
            }
            if error.kind() == ErrorKind::WouldBlock {
                // As patient as with a pipe that blocks; shutdown has a deadline of its own.
                std::thread::sleep(FULL_RETRY_AFTER);
                continue;
            }
            if !std::mem::replace(&mut refused, true) {
                tracing::warn!(
                    %error,
                    "standard output refuses to be written to; it is tried again each second, and what does not fit is counted in galen_output_dropped_total"
                );
            }
            if self.ends_within(RETRY_AFTER) {
                return Some(false);
            }
        }
        buffer.clear();
        None
    }

    fn ends_within(&self, length: Duration) -> bool {
        let (queue, _) = self
            .shared
            .wake
            .wait_timeout_while(self.shared.lock(), length, |queue| !queue.ending)
            .unwrap_or_else(PoisonError::into_inner);
        queue.ending
    }

    fn close(&self, error: &io::Error) {
        {
            let mut queue = self.shared.lock();
            queue.closed = true;
            queue.records.clear();
        }
        tracing::warn!(
            %error,
            "standard output cannot be written to, events are not printed any more; follow them with `galen events`"
        );
    }
}

/// A reader that went away, a descriptor that is none, and a terminal that hung up do not come back.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe || matches!(error.raw_os_error(), Some(libc::EBADF | libc::EIO))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;
    use crate::event::{Body, Event, Lost, WallTime};

    /// A pipe that takes nothing until it is opened.
    struct Gate {
        entered: mpsc::Sender<()>,
        open: mpsc::Receiver<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.entered.send(());
            self.open.recv().map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            self.written.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Fixture {
        stdout: Stdout,
        entered: mpsc::Receiver<()>,
        open: mpsc::Sender<()>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    fn fixture() -> Fixture {
        let (entered_sender, entered) = mpsc::channel();
        let (open, open_receiver) = mpsc::channel();
        let written = Arc::default();
        let gate = Gate { entered: entered_sender, open: open_receiver, written: Arc::clone(&written) };
        let stdout = Stdout::start_on(Box::new(gate), Form::Json, "n".into()).unwrap();
        Fixture { stdout, entered, open, written }
    }

    fn record(kind: Kind) -> Arc<Record> {
        let body = Body::Lost(Lost { probe: "x", reason: "y", count: 1 });
        let event = Event { kind, ..Event::of_node(WallTime(0), "n".into(), body) };
        Record::new(Arc::new(event))
    }

    #[tokio::test]
    async fn a_stalled_pipe_drops_counts_and_tells_and_keeps_room_for_rare_events() {
        let Fixture { stdout, entered, open, written } = fixture();
        let printer = stdout.printer();
        printer.print(&record(Kind::FileWrite));
        entered.recv().unwrap();
        for _ in 0..QUEUE_MAX {
            printer.print(&record(Kind::FileWrite));
        }
        printer.print(&record(Kind::OomKill));
        let dropped = printer.dropped();
        assert_eq!(dropped[Kind::FileWrite as usize], RESERVED as u64);
        assert_eq!(dropped[Kind::OomKill as usize], 0);
        for _ in 0..100 {
            open.send(()).unwrap();
        }
        assert!(stdout.shutdown(Duration::from_secs(10)).await);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text.matches("oom_kill").count(), 1);
        let told = format!(r#""probe":"file_write","reason":"output_full","count":{RESERVED}}}"#);
        assert_eq!(text.matches(&told).count(), 1, "told once");
        assert_eq!(text.lines().count(), 1 + QUEUE_MAX - RESERVED + 1 + 1, "each line once");
    }

    /// A disk that is full after some bytes, until there is room again.
    struct Disk {
        room: usize,
        refused: mpsc::Sender<()>,
        freed: mpsc::Receiver<usize>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.room += self.freed.try_iter().sum::<usize>();
            if self.room == 0 {
                let _ = self.refused.send(());
                return Err(ErrorKind::StorageFull.into());
            }
            let fits = bytes.len().min(self.room);
            self.room -= fits;
            self.written.lock().unwrap().extend_from_slice(&bytes[..fits]);
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_tried_again_and_costs_no_line() {
        let (refused_sender, refused) = mpsc::channel();
        let (free, freed) = mpsc::channel();
        let written: Arc<Mutex<Vec<u8>>> = Arc::default();
        let disk = Disk { room: 10, refused: refused_sender, freed, written: Arc::clone(&written) };
        let stdout = Stdout::start_on(Box::new(disk), Form::Json, "n".into()).unwrap();
        stdout.printer().print(&record(Kind::OomKill));
        refused.recv_timeout(Duration::from_secs(10)).unwrap();
        stdout.printer().print(&record(Kind::Fault));
        free.send(1 << 20).unwrap();
        // Not before it was tried again: ending, it would give up.
        let deadline = Instant::now() + Duration::from_secs(10);
        while written.lock().unwrap().len() <= 10 {
            assert!(Instant::now() < deadline, "printing ended for good");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(stdout.shutdown(Duration::from_secs(10)).await);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let kinds: Vec<_> =
            text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect();
        assert_eq!(kinds.len(), 2, "each line once and whole: {text}");
    }

    #[tokio::test]
    async fn a_disk_that_stays_full_does_not_hold_up_the_end() {
        let (refused_sender, refused) = mpsc::channel();
        let (_free, freed) = mpsc::channel();
        let disk = Disk { room: 0, refused: refused_sender, freed, written: Arc::default() };
        let stdout = Stdout::start_on(Box::new(disk), Form::Json, "n".into()).unwrap();
        stdout.printer().print(&record(Kind::OomKill));
        refused.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(!stdout.shutdown(Duration::from_secs(10)).await, "not everything was written");
    }

    #[tokio::test]
    async fn shutdown_leaves_a_stuck_writer_behind() {
        let Fixture { stdout, entered, open, .. } = fixture();
        stdout.printer().print(&record(Kind::OomKill));
        entered.recv().unwrap();
        assert!(!stdout.shutdown(Duration::from_millis(20)).await);
        drop(open);
    }

    #[tokio::test]
    async fn a_broken_pipe_ends_printing_and_nothing_else() {
        let Fixture { stdout, open, .. } = fixture();
        drop(open);
        let printer = stdout.printer();
        printer.print(&record(Kind::OomKill));
        // The thread ends by itself at the first write.
        let Stdout { shared, done } = stdout;
        tokio::time::timeout(Duration::from_secs(10), done).await.unwrap().unwrap();
        printer.print(&record(Kind::OomKill));
        assert!(shared.lock().records.is_empty());
        assert_eq!(printer.dropped(), [0; 7], "nobody reads: that is no loss");
    }

    #[tokio::test]
    async fn what_is_queued_is_written_in_one_go() {
        let Fixture { stdout, entered, open, written } = fixture();
        let printer = stdout.printer();
        printer.print(&record(Kind::OomKill));
        entered.recv().unwrap();
        for _ in 0..10 {
            printer.print(&record(Kind::Fault));
        }
        open.send(()).unwrap();
        open.send(()).unwrap();
        assert!(stdout.shutdown(Duration::from_secs(10)).await);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 11, "two writes were enough");
    }
}
