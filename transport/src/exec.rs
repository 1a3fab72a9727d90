//! `exec:` links: a child's stdin and stdout.

use crate::descriptor::{Descriptor, Kind};
use crate::error::Failure;
use crate::link::Ends;
use crate::shutdown::Stop;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// The end of a child, once a thread that waits for nothing else has seen it. So no child stays a zombie,
/// and dropping a link never blocks.
#[derive(Debug, Default)]
pub(crate) struct Reaped {
    status: Mutex<Option<ExitStatus>>,
    changed: Condvar,
}

/// Starts `argv` with its stdin and stdout as the two directions of a link. Its stderr is ours.
pub(crate) fn spawn(argv: &[String]) -> Result<Ends, Failure> {
    let (program, arguments) = argv.split_first().ok_or(crate::AddressError::Empty { transport: "exec" })?;
    let mut child =
        Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let stdin = child.stdin.take().expect("stdin was asked for as a pipe");
    let stdout = child.stdout.take().expect("stdout was asked for as a pipe");
    let reaped = Arc::new(Reaped::default());
    let publish = Arc::clone(&reaped);
    thread::Builder::new().name("reap".to_owned()).spawn(move || {
        // Fails only if somebody else has collected the child; then there is no status to wait for.
        publish.publish(child.wait().unwrap_or_default());
    })?;
    let stop = Arc::new(Stop::with_bell()?);
    Ok(Ends {
        receiving: Some(Arc::new(Descriptor::new(stdout.into(), Kind::Pipe, Arc::clone(&stop))?)),
        sending: Some(Arc::new(Descriptor::new(stdin.into(), Kind::Pipe, Arc::clone(&stop))?)),
        stop,
        child: Some(reaped),
    })
}

impl Reaped {
    /// Waits for the child's end.
    ///
    /// # Errors
    /// [`Failure::Command`] if it was not a success, [`Failure::TimedOut`] if it did not come.
    pub(crate) fn wait(&self, patience: Option<Duration>) -> Result<(), Failure> {
        let status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        let running = |status: &mut Option<ExitStatus>| status.is_none();
        let status = match patience {
            None => *self.changed.wait_while(status, running).unwrap_or_else(PoisonError::into_inner),
            Some(after) => {
                let result = self.changed.wait_timeout_while(status, after, running);
                *result.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        match status {
            None => Err(Failure::TimedOut { after: patience.unwrap_or_default() }),
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Failure::Command(status)),
        }
    }

    fn publish(&self, status: ExitStatus) {
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.changed.notify_all();
    }
}
