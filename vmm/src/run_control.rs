//! Starting and stopping the threads that are the guest.
//!
//! Each vCPU or worker is one thread that is either running the guest or parked here. Stopping is a request, a
//! kick, and a wait until every thread has parked; nobody sleeps or polls.

use crate::pace::{Grant, Pacer, Rate};
use limosa::KernelThread;
use nix::unistd::gettid;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Whether the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its vCPUs or workers are executing.
    Running,
    /// Nothing of the guest executes, and its memory and state do not change.
    Paused,
    /// It stopped itself and cannot be resumed.
    Ended(GuestEnd),
}

/// How a guest stopped itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    /// It wrote this byte to the debug exit port.
    DebugExit(u8),
    /// A vCPU met something that this VMM does not provide.
    VcpuStuck {
        /// Which vCPU.
        vcpu: u32,
        /// What it met.
        reason: StuckReason,
    },
    /// The thread of a vCPU or worker panicked.
    ThreadPanicked {
        /// Which vCPU or worker.
        worker: u32,
    },
}

/// What a vCPU met that ends its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StuckReason {
    /// A triple fault.
    Shutdown,
    /// `KVM_RUN` failed with this errno.
    RunFailed(i32),
    /// KVM could not emulate an instruction or enter the guest.
    InternalError,
    /// An exit of a kind that no device here answers.
    UnexpectedExit,
}

/// What a worker does after it was parked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    Quit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Running,
    Paused,
    Gone,
}

struct State {
    wanted: Wanted,
    parked: Box<[bool]>,
    /// The kernel's numbers of the threads, once they have started.
    threads: Box<[Option<KernelThread>]>,
    end: Option<GuestEnd>,
    rate: Rate,
}

/// The desk at which the guest's threads park, and at which its owner stops and starts them.
pub(crate) struct RunControl {
    state: Mutex<State>,
    /// Told of every change of `state`.
    changed: Condvar,
    /// Whether running threads should park: a copy of `wanted != Running` that costs no lock to look at.
    stop: AtomicBool,
}

impl RunControl {
    /// For `workers` threads, paused, none parked yet.
    pub(crate) fn new(workers: u32, rate: Rate) -> Self {
        let parked = vec![false; workers as usize].into();
        let threads = vec![None; workers as usize].into();
        Self {
            state: Mutex::new(State { wanted: Wanted::Paused, parked, threads, end: None, rate }),
            changed: Condvar::new(),
            stop: AtomicBool::new(true),
        }
    }

    /// Stops the guest and returns when every thread has parked. `kick` must bring a worker out of the guest.
    pub(crate) fn pause(&self, kick: impl Fn(u32)) {
        let mut state = self.state.lock();
        if state.wanted == Wanted::Running {
            self.want(&mut state, Wanted::Paused);
        }
        self.kick_running(&state, kick);
        while state.parked.contains(&false) {
            self.changed.wait(&mut state);
        }
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// The way it ended, if it has.
    pub(crate) fn resume(&self) -> Result<(), GuestEnd> {
        let mut state = self.state.lock();
        if let Some(end) = state.end {
            return Err(end);
        }
        self.want(&mut state, Wanted::Running);
        Ok(())
    }

    /// Tells every thread to return. Does not wait: join them.
    pub(crate) fn dismiss(&self, kick: impl Fn(u32)) {
        let mut state = self.state.lock();
        self.want(&mut state, Wanted::Gone);
        self.kick_running(&state, kick);
    }

    /// Whether the guest runs. It is [`RunState::Paused`] only when every thread has parked.
    pub(crate) fn run_state(&self) -> RunState {
        let state = self.state.lock();
        match state.end {
            Some(end) => RunState::Ended(end),
            None if state.wanted == Wanted::Running || state.parked.contains(&false) => RunState::Running,
            None => RunState::Paused,
        }
    }

    /// How fast the workers may go from now on.
    pub(crate) fn set_rate(&self, rate: Rate) {
        self.state.lock().rate = rate;
        self.changed.notify_all();
    }

    /// How fast the workers may go.
    pub(crate) fn rate(&self) -> Rate {
        self.state.lock().rate
    }

    /// The kernel's numbers of the guest's threads, worker by worker. Waits until all have started.
    pub(crate) fn kernel_threads(&self) -> Vec<KernelThread> {
        let mut state = self.state.lock();
        while state.threads.contains(&None) {
            self.changed.wait(&mut state);
        }
        state.threads.iter().copied().flatten().collect()
    }

    /// For a worker: whether it should park soon.
    pub(crate) fn stop_wanted(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// For a worker: parks until the guest runs. `before_run` is called before anybody can ask for a stop again,
    /// so it may forget a kick that has been obeyed, and cannot forget one that has not.
    pub(crate) fn park(&self, worker: u32, before_run: impl FnOnce()) -> Order {
        let mut state = self.state.lock();
        state.parked[worker as usize] = true;
        self.changed.notify_all();
        loop {
            match state.wanted {
                Wanted::Paused => self.changed.wait(&mut state),
                Wanted::Gone => return Order::Quit,
                Wanted::Running => {
                    state.parked[worker as usize] = false;
                    before_run();
                    return Order::Run;
                }
            }
        }
    }

    /// For a worker: waits until `pacer` grants steps; 0 if a stop is wanted first.
    pub(crate) fn wait_for_steps(&self, pacer: &mut Pacer) -> u64 {
        let mut state = self.state.lock();
        while state.wanted == Wanted::Running {
            let now = Instant::now();
            pacer.set_rate(state.rate, now);
            match pacer.ask(now) {
                Grant::Steps(steps) => return steps,
                Grant::After(moment) => {
                    self.changed.wait_until(&mut state, moment);
                }
                Grant::Never => self.changed.wait(&mut state),
            }
        }
        0
    }

    /// For a worker with nothing to do, a halted vCPU: waits until a stop is wanted.
    pub(crate) fn wait_for_stop(&self) {
        let mut state = self.state.lock();
        while state.wanted == Wanted::Running {
            self.changed.wait(&mut state);
        }
    }

    /// For a worker: the guest has ended, and every other thread should park. The first end counts.
    pub(crate) fn end(&self, end: GuestEnd, kick: impl Fn(u32)) {
        let mut state = self.state.lock();
        state.end.get_or_insert(end);
        if state.wanted == Wanted::Running {
            self.want(&mut state, Wanted::Paused);
        }
        self.kick_running(&state, kick);
    }

    /// For a worker's thread: it has started.
    fn enter(&self, worker: u32) {
        let number = KernelThread(gettid().as_raw().unsigned_abs());
        self.state.lock().threads[worker as usize] = Some(number);
        self.changed.notify_all();
    }

    /// For a worker's thread that is being unwound: it will never run again, and counts as parked.
    fn lose(&self, worker: u32) {
        let mut state = self.state.lock();
        state.end.get_or_insert(GuestEnd::ThreadPanicked { worker });
        state.parked[worker as usize] = true;
        if state.wanted == Wanted::Running {
            self.want(&mut state, Wanted::Paused);
        }
        self.changed.notify_all();
    }

    fn want(&self, state: &mut MutexGuard<'_, State>, wanted: Wanted) {
        state.wanted = wanted;
        self.stop.store(wanted != Wanted::Running, Ordering::Release);
        self.changed.notify_all();
    }

    fn kick_running(&self, state: &MutexGuard<'_, State>, kick: impl Fn(u32)) {
        (0..).zip(&state.parked).filter(|(_, parked)| !**parked).for_each(|(worker, _)| kick(worker));
    }
}

/// Held by a worker's thread: whatever ends the thread early also reports it, so that no pause waits for it.
pub(crate) struct ThreadGuard<'a> {
    control: &'a RunControl,
    worker: u32,
}

impl<'a> ThreadGuard<'a> {
    /// For the thread of `worker`, which calls it.
    pub(crate) fn of(control: &'a RunControl, worker: u32) -> Self {
        control.enter(worker);
        Self { control, worker }
    }
}

impl Drop for ThreadGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.control.lose(self.worker);
        }
    }
}
