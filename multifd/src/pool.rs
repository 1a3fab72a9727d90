//! The workers that compress and decompress: as many as the machine is to spend, however many channels there are.
//!
//! A channel starts a [`Task`] per packet and keeps those under way in a [`Pipeline`], in the order of its packets.
//! A worker never blocks: it has everything that its packet needs, and the link is the channel's. A task that fails,
//! even with a panic, is reported by the worker at once, because its channel may be blocked in its link.

mod pipeline;
mod tools;
mod workspaces;

use crossbeam_utils::CachePadded;
use limosa_pages::ByteCount;
use pipeline::Task;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::io;
use std::num::NonZeroU8;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

pub(crate) use pipeline::Pipeline;
pub(crate) use tools::Tools;
pub(crate) use workspaces::{Workspaces, packets_in_flight};

/// What the workers of one end have done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStatistics {
    /// Threads.
    pub workers: usize,
    /// Time that they were at work, all together.
    pub busy: Duration,
    /// Packets done.
    pub packets: u64,
    /// Bytes that went into the codec: pages at the sending end, payloads at the receiving one.
    pub bytes_in: ByteCount,
    /// Bytes that came out.
    pub bytes_out: ByteCount,
}

/// The workers of one end of a migration. A clone is another handle; the threads end with the last.
#[derive(Clone, Debug)]
pub(crate) struct CodecPool {
    threads: Arc<ThreadPool>,
    shared: Arc<CachePadded<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    busy_nanoseconds: AtomicU64,
    packets: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// Nobody wants what has not begun.
    abandoned: AtomicBool,
}

/// Bytes that went through a codec.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Converted {
    pub(crate) bytes_in: usize,
    pub(crate) bytes_out: usize,
}

/// A worker has a bug.
#[derive(Debug)]
pub(crate) struct WorkerPanicked;

impl CodecPool {
    /// Starts `workers` threads whose names begin with `name`; `None` stands for as many as there are processors.
    pub(crate) fn new(name: &'static str, workers: Option<NonZeroU8>) -> io::Result<Self> {
        let processors = || available_parallelism().map_or(1, |count| count.get().min(usize::from(u8::MAX)));
        let workers = workers.map_or_else(processors, |workers| usize::from(workers.get()));
        let threads = ThreadPoolBuilder::new()
            .num_threads(workers)
            .thread_name(move |index| format!("{name}-{index}"))
            .build()
            .map_err(io::Error::other)?;
        Ok(Self { threads: Arc::new(threads), shared: Arc::default() })
    }

    pub(crate) fn workers(&self) -> usize {
        self.threads.current_num_threads()
    }

    /// Has `work` done by a worker. What it fails with goes to `report`, on the worker, and the task has no result.
    ///
    /// Cost: two allocations.
    pub(crate) fn start<T, F>(
        &self,
        work: impl FnOnce() -> Result<(T, Converted), F> + Send + 'static,
        report: impl FnOnce(F) + Send + 'static,
    ) -> Task<T>
    where
        T: Send + 'static,
        F: From<WorkerPanicked>,
    {
        let (sender, result) = mpsc::sync_channel(1);
        let shared = Arc::clone(&self.shared);
        self.threads.spawn(move || {
            if shared.abandoned.load(Ordering::Relaxed) {
                // What it holds goes before its channel hears that it is gone.
                drop(work);
                return;
            }
            let start = Instant::now();
            // Nobody looks at what a panic leaves behind: the channel ends with it.
            let outcome = catch_unwind(AssertUnwindSafe(work));
            // 2^64 nanoseconds are 584 years.
            shared.busy_nanoseconds.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
            match outcome {
                Ok(Ok((made, converted))) => {
                    shared.count(converted);
                    // Whoever does not wait for it does not need it.
                    let _ = sender.send(made);
                }
                Ok(Err(failure)) => report(failure),
                Err(_) => report(WorkerPanicked.into()),
            }
        });
        Task::new(result)
    }

    /// Lets tasks that have not begun end without a result: the migration is over.
    pub(crate) fn abandon(&self) {
        self.shared.abandoned.store(true, Ordering::Relaxed);
    }

    /// The values now. They are read one after the other: sums may be off by what happens meanwhile.
    pub(crate) fn statistics(&self) -> PoolStatistics {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PoolStatistics {
            workers: self.workers(),
            busy: Duration::from_nanos(value(&self.shared.busy_nanoseconds)),
            packets: value(&self.shared.packets),
            bytes_in: ByteCount(value(&self.shared.bytes_in)),
            bytes_out: ByteCount(value(&self.shared.bytes_out)),
        }
    }
}

impl Shared {
    fn count(&self, converted: Converted) {
        self.packets.fetch_add(1, Ordering::Relaxed);
        self.bytes_in.fetch_add(converted.bytes_in as u64, Ordering::Relaxed);
        self.bytes_out.fetch_add(converted.bytes_out as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[derive(Debug, PartialEq)]
    enum Failure {
        Said(u32),
        Panicked,
    }

    impl From<WorkerPanicked> for Failure {
        fn from(_: WorkerPanicked) -> Self {
            Self::Panicked
        }
    }

    const NOTHING: Converted = Converted { bytes_in: 0, bytes_out: 0 };

    fn pool(workers: u8) -> CodecPool {
        CodecPool::new("test", NonZeroU8::new(workers)).expect("threads")
    }

    #[test]
    fn results_come_in_the_order_of_the_packets_whatever_ends_first() {
        let (pool, mut pipeline) = (pool(2), Pipeline::new());
        let (open, gate) = mpsc::channel::<()>();
        let first = move || gate.recv().map(|()| (1, NOTHING)).map_err(|_| Failure::Said(0));
        pipeline.push(pool.start(first, |_| {}));
        let second = move || open.send(()).map(|()| (2, NOTHING)).map_err(|_| Failure::Said(0));
        pipeline.push(pool.start(second, |_| {}));
        assert_eq!(
            [pipeline.oldest(), pipeline.oldest(), pipeline.oldest()],
            [Some(Some(1)), Some(Some(2)), None]
        );
    }

    #[test]
    fn a_failure_and_a_panic_are_reported_by_the_worker_and_the_pool_works_on() {
        let (pool, mut pipeline) = (pool(1), Pipeline::new());
        let (reports, reported) = mpsc::channel();
        let report = |reports: &mpsc::Sender<Failure>| {
            let reports = reports.clone();
            move |failure| reports.send(failure).expect("the test listens")
        };
        pipeline.push(pool.start(|| Err::<((), _), _>(Failure::Said(7)), report(&reports)));
        pipeline.push(pool.start(|| panic!("a bug in a codec"), report(&reports)));
        assert_eq!([reported.recv(), reported.recv()], [Ok(Failure::Said(7)), Ok(Failure::Panicked)]);
        pipeline.push(pool.start(|| Ok(((), NOTHING)), report(&reports)));
        assert_eq!(
            [pipeline.oldest(), pipeline.oldest(), pipeline.oldest()],
            [Some(None), Some(None), Some(Some(()))]
        );
        assert_eq!(pool.statistics().packets, 1);
    }

    #[test]
    fn a_pipeline_that_is_dropped_leaves_no_task_at_work() {
        let pool = pool(1);
        let shared = Arc::new(());
        let mut pipeline = Pipeline::new();
        for _ in 0..8 {
            let held = Arc::clone(&shared);
            let work = move || {
                thread::yield_now();
                drop(held);
                Ok::<_, Failure>(((), NOTHING))
            };
            pipeline.push(pool.start(work, |_| {}));
        }
        pool.abandon();
        drop(pipeline);
        assert_eq!(Arc::strong_count(&shared), 1);
    }
}
