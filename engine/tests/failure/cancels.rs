//! A cancel at every stage: before the commit point the guest goes on here, after it the cancel is refused.

use super::guest::{Guest, assert_completed};
use super::relay::{Medium, Way, hold, relay};
use super::stream::{Piece, What, pieces};
use super::{assert_migrates_now, assert_on_source, end, migrate_over, receive, send};
use limosa_engine::{
    Capabilities, GuestFate, Incoming, IncomingConfig, MigrationStatus, NoObserver, Observer, Outgoing,
    OutgoingConfig, OutgoingReport, Parameters, RunState, Vm, VmError,
};
use limosa_pages::ByteCount;
use limosa_transport::{Address, Link, Role, TcpAddress};
use parking_lot::Mutex;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

/// A PONG or a SHUT on the return path.
const ANSWER: u64 = 8;

/// The answers to the first PING and to the greeting, with a HELLO of 14 bytes between.
const GREETED: u64 = 2 * ANSWER + 14;

/// Knows the thread that it is told from.
#[derive(Debug, Default)]
struct Spy(AtomicI32);

impl Observer for Spy {
    fn status(&self, _status: MigrationStatus) {
        self.0.store(nix::unistd::gettid().as_raw(), Ordering::Release);
    }

    fn pass(&self, _number: u64) {}
}

impl Spy {
    /// Waits until that thread sleeps in the kernel.
    fn wait_until_asleep(&self) {
        wait_until(|| {
            let thread = self.0.load(Ordering::Acquire);
            // "7 (name of the thread) S 1 ...": the state is behind the last parenthesis.
            std::fs::read_to_string(format!("/proc/self/task/{thread}/stat"))
                .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S')))
        });
    }
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    while !condition() {
        std::thread::yield_now();
    }
}

/// Bytes of the stream before the first PART: all of setup.
fn setup_bytes() -> u64 {
    bytes_before(|pieces| pieces.iter().filter(|piece| piece.what == What::SectionHead).nth(1).cloned())
}

/// Bytes of the stream before the byte that lets the destination run the guest.
fn bytes_before_the_end() -> u64 {
    bytes_before(|pieces| pieces.iter().find(|piece| piece.what == What::EndOfStream).cloned())
}

fn bytes_before(find: impl FnOnce(&[Piece]) -> Option<Piece>) -> u64 {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let (here, there, relay) = relay(Medium::Unix, None);
    migrate_over((here, there), &mut source, &mut destination, OutgoingConfig::default());
    let stream = relay.join().unwrap().there;
    find(&pieces(&stream)).expect("a whole stream has it").range.start as u64
}

/// Ends a cancelled migration and checks both sides.
fn assert_cancelled(
    outgoing: Outgoing,
    source: &mut Guest,
    destination: &Guest,
    what: &str,
) -> OutgoingReport {
    outgoing.cancel();
    let (report, savevm) = outgoing.wait();
    source.give_back(savevm);
    assert_eq!(report.outcome.status(), MigrationStatus::Cancelled, "{what}: {report:?}");
    assert_eq!(report.guest(), GuestFate::OnSource, "{what}");
    assert!(!report.outcome.resume_failed && !report.outcome.cancel_refused, "{what}");
    assert_on_source(source, destination, what);
    report
}

#[test]
fn a_cancel_does_not_wait_for_a_connection_that_does_not_come() {
    // A queue of one that is full: the kernel drops every further attempt, which repeats itself for seconds.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    socket2::SockRef::from(&listener).listen(0).unwrap();
    let _waits = TcpStream::connect(address).unwrap();

    let mut source = Guest::tiny();
    let target = Address::Tcp(TcpAddress::new("127.0.0.1", address.port()));
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing =
        Outgoing::start(target, OutgoingConfig::default(), savevm, vm, Arc::new(NoObserver)).unwrap();
    wait_until(|| is_connecting(address));
    let mut destination = Guest::tiny_incoming();
    assert_cancelled(outgoing, &mut source, &destination, "connecting");
    assert!(is_connecting(address), "the cancel waited for the connection");
    assert_migrates_now(&mut source, &mut destination);
}

/// Whether some socket has asked for a connection to `address` and heard nothing yet.
fn is_connecting(address: SocketAddr) -> bool {
    const SYN_SENT: &str = "02";
    let port = format!(":{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    // "sl local remote state ...", with ports in hexadecimal.
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|remote| remote.ends_with(&port)) && fields.next() == Some(SYN_SENT)
    })
}

#[test]
fn a_cancel_while_setup_is_unanswered_leaves_the_guest_here() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let setup = setup_bytes();
    let (here, there, valve) = hold(Way::Back, GREETED).split();
    let incoming = receive(there, &mut destination, IncomingConfig::default());
    let outgoing = send(here, &mut source, OutgoingConfig::default());
    wait_until(|| incoming.statistics().received.0 >= setup);
    assert_eq!(outgoing.statistics().status, MigrationStatus::Setup);
    assert_cancelled(outgoing, &mut source, &destination, "setup");
    drop(valve);
    destination.give_back(incoming.wait().1);
    assert_migrates_now(&mut source, &mut destination);
}

#[test]
fn a_cancel_wakes_a_source_that_is_blocked_in_a_write() {
    let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
    // Half a megabyte passes; the other one and a half fill all buffers of the kernel.
    let (here, there, valve) = hold(Way::There, 512 << 10).split();
    let incoming = receive(there, &mut destination, IncomingConfig::default());
    let spy = Arc::new(Spy::default());
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::over(here, OutgoingConfig::default(), savevm, vm, spy.clone()).unwrap();
    valve.wait_until_reached();
    spy.wait_until_asleep();
    assert_eq!(outgoing.statistics().status, MigrationStatus::Active);
    assert_cancelled(outgoing, &mut source, &destination, "blocked");
    drop(valve);
    destination.give_back(incoming.wait().1);
    assert_migrates_now(&mut source, &mut destination);
}

#[test]
fn a_cancel_wakes_a_source_that_is_blocked_in_a_pipe() {
    let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
    let (reader, writer) = std::io::pipe().unwrap();
    let capabilities = Capabilities { return_path: false, ..Capabilities::default() };
    let config = OutgoingConfig { capabilities, ..OutgoingConfig::default() };
    let spy = Arc::new(Spy::default());
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let link = Link::from_fd(writer.into(), Role::Main).unwrap();
    let outgoing = Outgoing::over(link, config, savevm, vm, spy.clone()).unwrap();
    wait_until(|| outgoing.statistics().status == MigrationStatus::Active);
    spy.wait_until_asleep();
    assert_cancelled(outgoing, &mut source, &destination, "blocked in a pipe");
    drop(reader);
    assert_migrates_now(&mut source, &mut destination);
}

#[test]
fn a_cancel_ends_the_pause_of_a_throttled_source() {
    let (mut source, mut destination) = (Guest::running(0), Guest::incoming(0));
    let (here, there) = Link::pair().unwrap();
    let incoming = receive(there, &mut destination, IncomingConfig::default());
    // A byte per second: the pause after the first slice is longer than anybody waits.
    let parameters = Parameters { max_bandwidth: Some(ByteCount(1)), ..Parameters::default() };
    let config = OutgoingConfig { parameters, ..OutgoingConfig::default() };
    let spy = Arc::new(Spy::default());
    let (savevm, vm) = (source.take_savevm(), source.vm());
    let outgoing = Outgoing::over(here, config, savevm, vm, spy.clone()).unwrap();
    wait_until(|| outgoing.statistics().status == MigrationStatus::Active);
    spy.wait_until_asleep();
    assert_cancelled(outgoing, &mut source, &destination, "throttled");
    destination.give_back(incoming.wait().1);
    assert_migrates_now(&mut source, &mut destination);
}

#[test]
fn a_cancel_in_pre_switchover_resumes_the_guest() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let (here, there) = Link::pair().unwrap();
    let incoming = receive(there, &mut destination, IncomingConfig::default());
    let capabilities =
        Capabilities { return_path: true, pause_before_switchover: true, ..Capabilities::default() };
    let outgoing = send(here, &mut source, OutgoingConfig { capabilities, ..OutgoingConfig::default() });
    wait_until(|| outgoing.statistics().status == MigrationStatus::PreSwitchover);
    assert_eq!(source.run_state(), RunState::Paused);
    assert_cancelled(outgoing, &mut source, &destination, "pre-switchover");
    destination.give_back(incoming.wait().1);
    assert_migrates_now(&mut source, &mut destination);
}

#[test]
fn a_cancel_while_the_devices_are_unanswered_resumes_the_guest() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let everything = bytes_before_the_end();
    // Open, setup and the first round are answered; whether the devices are loaded is not.
    let (here, there, valve) = hold(Way::Back, GREETED + 2 * ANSWER).split();
    let incoming = receive(there, &mut destination, IncomingConfig::default());
    let outgoing = send(here, &mut source, OutgoingConfig::default());
    wait_until(|| incoming.statistics().received.0 >= everything);
    assert_eq!(outgoing.statistics().status, MigrationStatus::Device);
    assert_eq!(source.run_state(), RunState::Paused);
    assert_cancelled(outgoing, &mut source, &destination, "device");
    drop(valve);
    let (report, savevm) = incoming.wait();
    assert_eq!(report.outcome.status(), MigrationStatus::Failed);
    destination.give_back(savevm);
    assert_migrates_now(&mut source, &mut destination);
}

#[test]
fn a_cancel_after_the_commit_point_is_refused_and_harmless() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    // Everything is answered but for the last word.
    let (here, there, mut valve) = hold(Way::Back, GREETED + 3 * ANSWER).split();
    let incoming = receive(there, &mut destination, IncomingConfig::default());
    let outgoing = send(here, &mut source, OutgoingConfig::default());
    wait_until(|| destination.run_state() == RunState::Running);
    outgoing.cancel();
    assert!(!outgoing.has_ended());
    valve.open();
    let ended = end(outgoing, incoming, &mut source, &mut destination);
    assert_completed(&ended.outgoing, &ended.incoming);
    assert!(ended.outgoing.outcome.cancel_refused);
    assert_eq!((source.run_state(), destination.run_state()), (RunState::Paused, RunState::Running));
}

#[test]
fn a_cancel_at_any_moment_never_leaves_a_guest_in_doubt() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let (mut cancelled, mut completed) = (0, 0);
    for turn in 0_u32..400 {
        let (here, there) = Link::pair().unwrap();
        let incoming = receive(there, &mut destination, IncomingConfig::default());
        let outgoing = send(here, &mut source, OutgoingConfig::default());
        // Moments spread over the whole migration, whatever this machine's speed.
        for _ in 0..turn * 4 {
            std::hint::black_box(outgoing.statistics());
        }
        outgoing.cancel();
        let ended = end(outgoing, incoming, &mut source, &mut destination);
        match ended.outgoing.guest() {
            GuestFate::OnSource => {
                cancelled += 1;
                assert_eq!(ended.outgoing.outcome.status(), MigrationStatus::Cancelled, "turn {turn}");
                assert_on_source(&source, &destination, "cancelled");
            }
            GuestFate::OnDestination => {
                completed += 1;
                assert_completed(&ended.outgoing, &ended.incoming);
                assert_eq!(destination.run_state(), RunState::Running);
                source.put_into(RunState::Running);
                destination.put_into(RunState::InMigrate);
            }
            GuestFate::InDoubt | GuestFate::Paused | GuestFate::Lost => {
                panic!("turn {turn}: {:?}", ended.outgoing)
            }
        }
    }
    assert!(cancelled > 0 && cancelled + completed == 400, "{cancelled} cancelled, {completed} completed");
}

#[test]
fn a_destination_that_is_called_off_wakes_wherever_it_waits() {
    let destination = &mut Guest::tiny_incoming();
    let listening = Incoming::listen(
        &Address::Tcp(TcpAddress::new("127.0.0.1", 0)),
        IncomingConfig::default(),
        destination.take_savevm(),
        destination.vm(),
        Arc::new(NoObserver),
    )
    .unwrap();
    listening.cancel();
    let (report, savevm) = listening.wait();
    assert_eq!(report.outcome.status(), MigrationStatus::Cancelled);
    destination.give_back(savevm);

    // After nothing, in a header, in setup, in a page.
    for bytes in [0, 5, setup_bytes(), setup_bytes() + 1000] {
        let mut source = Guest::tiny();
        let (here, there, valve) = hold(Way::There, bytes).split();
        let incoming = receive(there, destination, IncomingConfig::default());
        let outgoing = send(here, &mut source, OutgoingConfig::default());
        valve.wait_until_reached();
        incoming.cancel();
        let (report, savevm) = incoming.wait();
        assert_eq!(report.outcome.status(), MigrationStatus::Cancelled, "after {bytes}");
        destination.give_back(savevm);
        drop(valve);
        let (report, savevm) = outgoing.wait();
        source.give_back(savevm);
        assert_eq!(report.guest(), GuestFate::OnSource, "after {bytes}");
        assert_on_source(&source, destination, "called off there");
        assert_migrates_now(&mut source, destination);
    }
}

/// A host that is asked to give up while it resumes its guest.
struct Hesitant {
    vm: Arc<dyn Vm>,
    incoming: OnceLock<Mutex<Incoming>>,
}

impl Vm for Hesitant {
    fn stop(&self) -> Result<(), VmError> {
        self.vm.stop()
    }

    fn resume(&self) -> Result<(), VmError> {
        self.incoming.wait().lock().cancel();
        self.vm.resume()
    }

    fn run_state(&self) -> RunState {
        self.vm.run_state()
    }
}

#[test]
fn a_destination_that_is_called_off_while_its_guest_starts_keeps_it_and_says_so() {
    let (mut source, mut destination) = (Guest::tiny(), Guest::tiny_incoming());
    let (here, there) = Link::pair().unwrap();
    let host = Arc::new(Hesitant { vm: destination.vm(), incoming: OnceLock::new() });
    let config = IncomingConfig::default();
    let savevm = destination.take_savevm();
    let incoming = Incoming::over(there, config, savevm, host.clone(), Arc::new(NoObserver)).unwrap();
    host.incoming.set(Mutex::new(incoming)).unwrap_or_else(|_| panic!("set once"));
    let (report, savevm) = send(here, &mut source, OutgoingConfig::default()).wait();
    source.give_back(savevm);
    assert!(report.is_completed(), "{report:?}");
    assert_eq!((source.run_state(), destination.run_state()), (RunState::Paused, RunState::Running));
}
