//! What the source's shell is in the middle of.

use super::postcopy::PostcopyStep;
use crate::sim::guest::RECORD_BYTES;
use crate::sim::link::Frame;
use limosa_pages::PageCount;
use limosa_protocol::SourceStep;
use std::collections::VecDeque;

#[derive(Debug)]
pub(super) enum Step {
    Write(Write),
    Sync,
    StopVm,
    ResumeVm,
    CloseLink,
    Finish,
    Postcopy(PostcopyStep),
}

/// Frames, pages, frames, and then a result.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) before: VecDeque<Frame>,
    pub(super) pages: Option<Slice>,
    pub(super) after: VecDeque<Frame>,
    pub(super) sent: u64,
    pub(super) result: WriteResult,
}

#[derive(Debug)]
pub(super) struct Slice {
    pub(super) bytes_left: u64,
    pub(super) pages_left: u64,
    /// Returns early rather than waiting for room.
    pub(super) bounded: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteResult {
    Command,
    Setup,
    Slice,
    Precopy,
    Devices,
    End,
    ForPostcopy,
    DiscardsAhead { pages: PageCount },
    Discards,
    Package,
    Push,
    PostcopyEnd,
    Bitmaps,
    LinksDropped,
}

impl Write {
    pub(super) fn count_page(&mut self) {
        let slice = self.pages.as_mut().expect("there is a slice under way");
        slice.pages_left -= 1;
        slice.bytes_left = slice.bytes_left.saturating_sub(RECORD_BYTES);
        self.sent += RECORD_BYTES;
    }
}

impl Step {
    /// What its failure is called. An end that fails half way is a loss.
    pub(super) fn can_fail(&self) -> Option<SourceStep> {
        match self {
            Self::Sync => Some(SourceStep::SyncDirty),
            Self::StopVm => Some(SourceStep::StopVm),
            Self::ResumeVm => Some(SourceStep::ResumeVm),
            Self::CloseLink | Self::Finish => None,
            Self::Postcopy(step) => step.can_fail(),
            Self::Write(write) => match write.result {
                WriteResult::Command | WriteResult::LinksDropped => None,
                WriteResult::Setup => Some(SourceStep::SaveSetup),
                WriteResult::Slice => Some(SourceStep::Iterate),
                WriteResult::Precopy => Some(SourceStep::CompletePrecopy),
                WriteResult::Devices => Some(SourceStep::SaveDevices),
                WriteResult::End => Some(SourceStep::SendEnd),
                WriteResult::ForPostcopy => Some(SourceStep::CompleteForPostcopy),
                WriteResult::DiscardsAhead { .. } | WriteResult::Discards => Some(SourceStep::SendDiscards),
                WriteResult::Package => Some(SourceStep::SendPackage),
                WriteResult::Push => Some(SourceStep::Push),
                WriteResult::PostcopyEnd => Some(SourceStep::CompletePostcopy),
                WriteResult::Bitmaps => Some(SourceStep::FetchBitmaps),
            },
        }
    }
}
