//! A link beside the main one is lost alone: the guest runs on, nobody pauses, and another takes its place.

use super::guest::{Guest, assert_completed};
use super::{Migration, Setting, assert_same_but_for_writes, start_by};
use limosa_engine::Codec;
use limosa_pages::{BlockId, PAGE_BYTES, PageIndex};
use limosa_transport::Address;
use parking_lot::Mutex;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;

/// Pages that the guest writes: few, so that it does not fetch all of its memory itself.
const HOT: u64 = 40;

/// The connections between source and destination, in the order in which they were made: main, channels, preempt, and
/// again channels and preempt for every replacement.
#[derive(Clone, Default)]
struct Board(Arc<Mutex<Vec<[TcpStream; 2]>>>);

impl Board {
    /// Passes all connections on to `destination`, as long as the process lives; returns where.
    fn stand_before(&self, destination: &Address) -> Address {
        let Address::Tcp(destination) = destination else { panic!("{destination} is not TCP") };
        let destination = (destination.host.clone(), destination.port);
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap()).parse().unwrap();
        let board = self.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                // Without a destination there is nobody left who would connect either.
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(destination.clone())) else { return };
                board.connect(near, far);
            }
        });
        address
    }

    fn connect(&self, near: TcpStream, far: TcpStream) {
        let mut connections = self.0.lock();
        near.set_nodelay(true).unwrap();
        far.set_nodelay(true).unwrap();
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            std::thread::spawn(move || {
                drop(io::copy(&mut from, &mut to));
                drop(to.shutdown(Shutdown::Write));
            });
        }
        connections.push([near, far]);
    }

    fn count(&self) -> usize {
        self.0.lock().len()
    }

    fn cut(&self, connection: usize) {
        for side in &self.0.lock()[connection] {
            // One that has ended is as wanted.
            drop(side.shutdown(Shutdown::Both));
        }
    }
}

/// Makes most of the guest's memory incompressible: a push that a codec makes short leaves no time to lose links in.
fn fill_with_noise(guest: &Guest) {
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 32) as u8
    };
    let block = guest.ram.block(BlockId(0));
    for page in HOT..block.pages().0 {
        let page = PageIndex(page);
        block.copy_in(page.byte_offset(), &std::array::from_fn::<u8, PAGE_BYTES, _>(|_| noise()));
    }
}

/// A running guest, gone over to postcopy; it is known there that it runs.
fn in_postcopy(source: &mut Guest, destination: &mut Guest, setting: Setting, board: &Board) -> Migration {
    fill_with_noise(source);
    source.let_write(1000);
    let migration = start_by(source, destination, setting, |there| board.stand_before(there));
    migration.outgoing.start_postcopy().unwrap();
    migration.wait_both("postcopy-active");
    migration.wait_until(|migration| migration.outgoing.statistics().downtime.is_some());
    migration
}

/// Cuts a link and waits until it is replaced, or all is over; says whether it was.
fn cut_and_await(migration: &Migration, board: &Board, connection: usize) -> bool {
    let replacements = migration.outgoing.statistics().replacements;
    board.cut(connection);
    migration.wait_until(|migration| {
        let figures = (migration.outgoing.statistics(), migration.incoming.statistics());
        assert_ne!(figures.0.status.as_str(), "postcopy-paused", "{figures:?}");
        assert_ne!(figures.1.status.as_str(), "postcopy-paused", "{figures:?}");
        figures.0.replacements > replacements
    });
    migration.outgoing.statistics().replacements > replacements
}

/// Ends a migration of which links were replaced so often, and compares the guests.
fn complete(migration: Migration, source: &mut Guest, destination: &mut Guest, replaced: u32) {
    let (here, there) = (migration.here.clone(), migration.there.clone());
    let (outgoing, incoming) = migration.wait(source, destination);
    assert_completed(&outgoing, &incoming);
    let figures = &outgoing.statistics;
    assert_eq!((figures.pauses, figures.replacements, &figures.error), (0, replaced, &None), "{figures:?}");
    assert_eq!(here.statuses(), ["setup", "active", "device", "postcopy-active", "completed"]);
    assert_eq!(there.statuses(), ["setup", "active", "postcopy-active", "completed"]);
    let sent = source.counter.lock().writes;
    destination.let_write(100);
    destination.stop();
    assert_same_but_for_writes(source, destination, sent);
}

#[test]
fn a_link_beside_the_main_one_is_replaced_without_a_pause() {
    for (preempt, channels) in [(true, 0), (false, 2), (true, 2)] {
        let (mut source, mut destination) = (Guest::running(HOT), Guest::incoming(HOT));
        let setting = Setting { preempt, autostart: true, channels, ..Setting::default() };
        let (board, beside) = (Board::default(), usize::from(channels) + usize::from(preempt));
        let migration = in_postcopy(&mut source, &mut destination, setting, &board);
        for time in 0..3 {
            // Of the newest links another one each time; the last is the preempt link.
            let made = 1 + beside * (time + 1);
            migration.wait_until(|_| board.count() == made);
            let replaced = cut_and_await(&migration, &board, made - 1 - time % beside);
            assert!(replaced, "{setting:?}: {:?}", migration.outgoing.statistics());
        }
        complete(migration, &mut source, &mut destination, 3);
    }
}

/// With a codec the push of a guest so small may be over before a link is missed.
#[test]
fn channels_with_a_codec_begin_anew_when_they_are_replaced() {
    for codec in [Codec::Lz4, Codec::Zstd { level: 1 }] {
        let (mut source, mut destination) = (Guest::running(HOT), Guest::incoming(HOT));
        let setting = Setting { autostart: true, channels: 2, codec, ..Setting::default() };
        let board = Board::default();
        let migration = in_postcopy(&mut source, &mut destination, setting, &board);
        let replaced = cut_and_await(&migration, &board, 1);
        complete(migration, &mut source, &mut destination, u32::from(replaced));
    }
}
