//! Guests of QEMU, recorded with a payload of our own: captured, sent on, captured again.

use limosa_engine::{
    Capabilities, CapturedGuest, LoadError, NoObserver, Outgoing, OutgoingConfig, RunState, Vm, VmError,
};
use limosa_pages::PAGE_BYTES;
use limosa_transport::Link;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

/// The engine's hold on a guest that has no vCPUs here.
struct NoVcpus;

impl Vm for NoVcpus {
    fn stop(&self) -> Result<(), VmError> {
        Ok(())
    }

    fn resume(&self) -> Result<(), VmError> {
        Ok(())
    }

    fn run_state(&self) -> RunState {
        RunState::Paused
    }
}

fn recording(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../stress/corpora").join(name);
    zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap()
}

/// What a source does after its last byte.
#[derive(PartialEq)]
enum Then {
    WaitForAnswers,
    HangUp,
}

/// Captures what `bytes` say, and returns the answers too.
fn capture(bytes: Vec<u8>, then: Then) -> (Result<CapturedGuest, LoadError>, Vec<u8>) {
    let (near, far) = Link::pair().unwrap();
    let source = std::thread::spawn(move || {
        let (mut reader, mut writer) = far.split();
        // A capture that fails hangs up before it has read everything.
        let written = writer.write_all(&bytes);
        if then == Then::HangUp {
            written.and_then(|()| writer.finish()).unwrap();
        }
        let mut answers = Vec::new();
        reader.read_to_end(&mut answers).map(|_| answers)
    });
    let captured = CapturedGuest::receive(near);
    (captured, source.join().unwrap().unwrap_or_default())
}

fn send(guest: CapturedGuest) -> CapturedGuest {
    let (near, far) = Link::pair().unwrap();
    let receiver = std::thread::spawn(move || CapturedGuest::receive(far));
    // The proof before the end of the stream stands between device sections, which a capture cannot read in order.
    let capabilities = Capabilities { return_path: false, ..Capabilities::default() };
    let config = OutgoingConfig { capabilities, ..OutgoingConfig::default() };
    let outgoing =
        Outgoing::over(near, config, guest.into_savevm(), Arc::new(NoVcpus), Arc::new(NoObserver)).unwrap();
    assert!(outgoing.wait().0.is_completed());
    receiver.join().unwrap().unwrap()
}

fn memory(guest: &CapturedGuest) -> Vec<(String, Vec<u8>)> {
    let blocks = guest.ram.iter().map(|(_, block)| {
        let mut bytes = vec![0; block.length().0 as usize];
        block.copy_out(0, &mut bytes);
        (block.name().to_string(), bytes)
    });
    blocks.collect()
}

#[test]
fn a_recorded_guest_survives_being_captured_and_sent_on() {
    for name in ["precopy-microvm-tcg", "precopy-microvm-kvm", "precopy-pc-tcg", "xbzrle-microvm"] {
        let (captured, answers) = capture(recording(&format!("{name}.0.zst")), Then::WaitForAnswers);
        let captured = captured.unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert!(
            answers.ends_with(b"\x00\x01\x00\x04\x00\x00\x00\x00"),
            "{name}: SHUT(0) comes last: {answers:x?}"
        );
        assert_eq!(captured.devices.last().unwrap().idstr, "globalstate", "{name}");
        assert_eq!(captured.statistics.xbzrle_pages.0 > 0, name.starts_with("xbzrle"), "{name}");
        let (blocks, devices) = (memory(&captured), captured.devices.clone());
        let configuration = captured.configuration.clone();
        let again = send(captured);
        assert_eq!(again.configuration, configuration, "{name}");
        assert_eq!(again.devices, devices, "{name}");
        assert!(memory(&again) == blocks, "{name}");
        assert!(blocks.iter().any(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)), "{name}");
    }
}

#[test]
fn a_cut_recording_is_refused_where_it_ends() {
    let whole = recording("precopy-microvm-tcg.0.zst");
    let (result, _) = capture(whole[..100].to_vec(), Then::HangUp);
    let error = result.err().expect("most of it is missing");
    assert!(error.to_string().contains("section ram/0 at byte"), "{error}");
}

#[test]
fn a_damaged_recording_is_refused_and_the_source_hears_of_it() {
    let mut wrong = recording("precopy-microvm-tcg.0.zst");
    // The record of the second page: now with flags that no record has.
    let at = wrong.windows(8).position(|word| word == (PAGE_BYTES as u64 | 0x22).to_be_bytes()).unwrap();
    wrong[at + 7] = 0xff;
    let (result, answers) = capture(wrong, Then::WaitForAnswers);
    let error = result.err().expect("no record has these flags");
    assert!(error.to_string().contains("section ram/0 at byte"), "{error}");
    assert!(answers.ends_with(b"\x00\x01\x00\x04\x00\x00\x00\x01"), "SHUT(1): {answers:x?}");
}
