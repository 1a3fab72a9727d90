//! What goes wrong.

use super::world::World;
use limosa_protocol::{
    BytesPerSecond, DestinationEvent, EntryIndex, ParameterChange, SectionKind, SourceEvent,
};
use limosa_wire::{
    Agreement, Command, EXTENSIONS_VERSION, Features, GREETING, Hello, MultifdSettings, RefusalReason,
    ReturnMessage, SectionId,
};
use std::time::Duration;

use super::channels::Packet;
use super::link::{Channel, Frame};
use super::rng::Rng;

/// One thing that goes wrong, or that a user does at a bad moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The connection breaks; some of what is under way still arrives.
    CutLink,
    /// The connection goes dead without a word.
    SilenceLink,
    /// The link for pages that were asked for breaks, alone; some of what is under way still arrives.
    CutPreempt,
    /// A channel breaks; some of what is under way still arrives.
    CutChannel,
    /// A channel goes dead without a word.
    SilenceChannel,
    /// A SYNC packet does not arrive.
    LoseSync,
    /// The source's process dies, and the guest if it was there.
    CrashSource,
    /// The destination's process dies, and the guest if it was there.
    CrashDestination,
    /// The step that the source is in fails.
    FailSourceStep,
    /// The next thing that the destination loads or starts fails.
    FailDestinationStep,
    /// The user cancels, and the guest cannot be resumed.
    FailResume,
    /// The user cancels on the source.
    CancelSource,
    /// The user cancels on the destination.
    CancelDestination,
    /// The user changes limits. Harmless at any moment.
    ChangeParameters,
    /// The return path says something that the destination did not.
    LieOnReturnPath,
    /// The stream contains something that does not belong there.
    InjectFrame,
    /// The user pauses postcopy on the source.
    PauseSource,
    /// The user pauses postcopy on the destination.
    PauseDestination,
}

impl Fault {
    /// Those of the channels.
    pub const OF_CHANNELS: [Self; 3] = [Self::CutChannel, Self::SilenceChannel, Self::LoseSync];

    /// All that need neither channels nor postcopy.
    pub const ALL: [Self; 12] = [
        Self::CutLink,
        Self::SilenceLink,
        Self::CrashSource,
        Self::CrashDestination,
        Self::FailSourceStep,
        Self::FailDestinationStep,
        Self::FailResume,
        Self::CancelSource,
        Self::CancelDestination,
        Self::ChangeParameters,
        Self::LieOnReturnPath,
        Self::InjectFrame,
    ];

    /// Those that strike one with postcopy: nobody lies, because what a liar says of the guest is believed.
    pub const POSTCOPY: [Self; 12] = [
        Self::CutLink,
        Self::CutPreempt,
        Self::SilenceLink,
        Self::CrashSource,
        Self::CrashDestination,
        Self::FailSourceStep,
        Self::FailDestinationStep,
        Self::CancelSource,
        Self::CancelDestination,
        Self::ChangeParameters,
        Self::PauseSource,
        Self::PauseDestination,
    ];

    /// Makes it happen.
    pub fn strike(self, world: &mut World) {
        let now = world.environment.now;
        match self {
            Self::CutLink => cut(world),
            Self::SilenceLink => world.environment.link.silence(now),
            Self::CutPreempt => cut_alone(&mut world.environment.link.preempt, &mut world.environment.rng),
            Self::CutChannel => {
                let channel = some_channel(world);
                cut_channel(world, channel);
            }
            Self::SilenceChannel => {
                let channel = some_channel(world);
                world.environment.channels[channel].silence(now);
            }
            Self::LoseSync => lose_sync(world),
            Self::CrashSource => {
                world.source.crash();
                cut(world);
                cut_channels(world);
            }
            Self::CrashDestination => {
                world.destination.crash();
                cut(world);
                cut_channels(world);
            }
            Self::FailSourceStep => world.source.fail_step(),
            Self::FailDestinationStep => world.destination.fail_step(),
            Self::FailResume => {
                world.source.fail_resume();
                world.source.tell(SourceEvent::Cancel);
            }
            Self::CancelSource => world.source.tell(SourceEvent::Cancel),
            Self::CancelDestination => world.destination.tell(DestinationEvent::Cancel),
            Self::ChangeParameters => change_parameters(world),
            Self::LieOnReturnPath => lie(world),
            Self::InjectFrame => inject(world),
            Self::PauseSource => world.source.tell(SourceEvent::PausePostcopy),
            Self::PauseDestination => world.destination.tell(DestinationEvent::PausePostcopy),
        }
    }
}

fn cut(world: &mut World) {
    let link = &mut world.environment.link;
    let rng = &mut world.environment.rng;
    let main = rng.below(link.main.under_way().len() as u64 + 1) as usize;
    let back = rng.below(link.back.under_way().len() as u64 + 1) as usize;
    link.cut(main, back);
}

fn some_channel(world: &mut World) -> usize {
    world.environment.rng.below(world.environment.channels.len() as u64) as usize
}

fn cut_channel(world: &mut World, channel: usize) {
    cut_alone(&mut world.environment.channels[channel], &mut world.environment.rng);
}

/// Some of what is under way still arrives.
fn cut_alone<T>(channel: &mut Channel<T>, rng: &mut Rng) {
    let kept = rng.below(channel.under_way().len() as u64 + 1) as usize;
    channel.cut(kept);
}

fn cut_channels(world: &mut World) {
    (0..world.environment.channels.len()).for_each(|channel| cut_channel(world, channel));
}

/// Harmless if none is under way.
fn lose_sync(world: &mut World) {
    let mut channels = world.environment.channels.iter_mut();
    world.environment.sync_lost |= channels.any(|channel| channel.lose(|packet| *packet == Packet::Sync));
}

fn change_parameters(world: &mut World) {
    let rng = &mut world.environment.rng;
    let limits = [Duration::ZERO, Duration::from_millis(2), Duration::from_secs(1)];
    let rates = [None, Some(BytesPerSecond(200_000)), Some(BytesPerSecond(50_000_000))];
    let change = ParameterChange {
        downtime_limit: Some(rng.choose(&limits)),
        max_bandwidth: Some(rng.choose(&rates)),
        switchover_bandwidth: Some(rng.choose(&rates)),
        max_postcopy_bandwidth: Some(rng.choose(&rates)),
    };
    world.source.tell(SourceEvent::SetParameters(change));
}

fn lie(world: &mut World) {
    let rng = &mut world.environment.rng;
    let features = Features::from_bits(rng.below(64));
    let message = match rng.below(8) {
        0 => ReturnMessage::Shut(0),
        1 => ReturnMessage::Shut(1 + rng.below(3) as u32),
        2 => ReturnMessage::Pong(rng.below(6) as u32),
        3 => ReturnMessage::Pong(0x5000_0000 + rng.below(6) as u32),
        4 => ReturnMessage::SwitchoverAck,
        5 => ReturnMessage::Hello(Hello { version: EXTENSIONS_VERSION, features }),
        6 => ReturnMessage::Refused(RefusalReason::new("a lie")),
        _ => ReturnMessage::ResumeAck,
    };
    world.checks.peer_lies = true;
    world.environment.link.back.inject(message);
}

fn inject(world: &mut World) {
    let rng = &mut world.environment.rng;
    let id = SectionId(rng.below(6) as u32);
    let kinds = [
        SectionKind::Start(EntryIndex(0)),
        SectionKind::Part,
        SectionKind::End,
        SectionKind::Full(EntryIndex(1)),
    ];
    let features = Features::from_bits(rng.below(Features::KNOWN.bits() + 1));
    let frame = match rng.below(10) {
        0 => Frame::Header,
        1 => Frame::Configuration,
        2 => Frame::Command(Command::PostcopyListen),
        3 => Frame::Command(Command::Ping(rng.below(9) as u32)),
        4 => Frame::Open { id, kind: rng.choose(&kinds) },
        5 => Frame::Footer(id),
        6 => Frame::EndOfStream,
        7 => Frame::Command(Command::Features(Agreement { features, multifd: MultifdSettings::default() })),
        8 => Frame::Command(Command::Ping(GREETING)),
        _ => Frame::Command(Command::OpenReturnPath),
    };
    world.environment.link.main.inject(frame);
}
