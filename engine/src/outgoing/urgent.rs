//! Pages that the destination waits for, served in the thread that hears of them.

use crate::ram::UrgentPath;
use crossbeam_channel::{Receiver, Sender};
use limosa_pages::{BlockName, ByteCount, DirtyMap};
use limosa_postcopy::{FaultHint, RequestError, Served, UrgentServer, UrgentStatistics};
use limosa_ram::GuestRam;
use limosa_transport::LinkWriter;
use limosa_wire::RequestedPages;
use parking_lot::Mutex;
use std::sync::Arc;

/// The urgent path of a migration: its server, from when the package leaves, as long as there is a connection.
pub(super) struct Urgent {
    server: Mutex<Serving>,
    /// Rung when pages wait for the main channel.
    bell: Sender<()>,
    pub(super) rung: Receiver<()>,
}

/// Whether requests are served.
enum Serving {
    /// Not in postcopy.
    NotYet,
    Yes(UrgentServer),
    /// No connection; kept for its figures, and for the next one.
    Paused(UrgentServer),
}

impl Serving {
    fn pause(&mut self) {
        *self = match std::mem::replace(self, Self::NotYet) {
            Self::Yes(server) | Self::Paused(server) => Self::Paused(server),
            Self::NotYet => Self::NotYet,
        };
    }
}

impl Urgent {
    pub(super) fn new() -> Arc<Self> {
        let (bell, rung) = crossbeam_channel::bounded(1);
        Arc::new(Self { server: Mutex::new(Serving::NotYet), bell, rung })
    }

    /// Serves requests from now on, on `preempt` or through the main channel. Returns what the push must know of it.
    pub(super) fn begin(
        &self,
        ram: GuestRam,
        owed: Arc<DirtyMap>,
        preempt: Option<LinkWriter>,
    ) -> UrgentPath {
        let hint = Arc::new(FaultHint::new());
        let (server, claimed) = match preempt {
            Some(link) => (UrgentServer::preempt(ram, owed, Arc::clone(&hint), link), None),
            None => {
                let (server, claimed) = UrgentServer::queue(ram, owed, Arc::clone(&hint));
                (server, Some(claimed))
            }
        };
        *self.server.lock() = Serving::Yes(server);
        UrgentPath { hint, claimed }
    }

    /// Serves no more: the connection is lost. Waits for what is being served.
    pub(super) fn pause(&self, path: &UrgentPath) {
        self.server.lock().pause();
        if let Some(claimed) = &path.claimed {
            // Claimed for a connection that is gone: the recovery owes them again (I1, I8).
            while claimed.try_recv().is_ok() {}
        }
    }

    /// Serves again, over a new connection.
    pub(super) fn resume(&self, preempt: Option<LinkWriter>) {
        let mut serving = self.server.lock();
        *serving = match std::mem::replace(&mut *serving, Serving::NotYet) {
            Serving::Yes(mut server) | Serving::Paused(mut server) => {
                if let Some(link) = preempt {
                    server.reconnect(link);
                }
                Serving::Yes(server)
            }
            Serving::NotYet => Serving::NotYet,
        };
    }

    /// Serves a request; `None` if it is not the time for one.
    pub(super) fn serve(
        &self,
        block: Option<&BlockName>,
        pages: RequestedPages,
    ) -> Option<Result<Served, RequestError>> {
        let mut serving = self.server.lock();
        let Serving::Yes(server) = &mut *serving else { return None };
        let served = server.serve(block, pages);
        if matches!(served, Err(RequestError::Transport(_))) {
            // What nobody can send must not be claimed.
            serving.pause();
        }
        if matches!(served, Ok(Served::Pages(_))) {
            // A bell that rings already is heard.
            let _ = self.bell.try_send(());
        }
        Some(served)
    }

    /// Waits for what is being served.
    pub(super) fn settle(&self) {
        drop(self.server.lock());
    }

    /// Bytes of pages that are not known to have arrived: behind the lock nothing is being served.
    pub(super) fn queued(&self) -> ByteCount {
        match &*self.server.lock() {
            Serving::Yes(server) => server.queued(),
            Serving::NotYet | Serving::Paused(_) => ByteCount(0),
        }
    }

    /// What was measured so far; `None` before postcopy.
    pub(super) fn statistics(&self) -> Option<UrgentStatistics> {
        match &*self.server.lock() {
            Serving::Yes(server) | Serving::Paused(server) => Some(server.statistics()),
            Serving::NotYet => None,
        }
    }
}
