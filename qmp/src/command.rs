//! The commands that a host answers.

use crate::address::Channel;
use crate::arguments::Arguments;
use crate::message::CommandError;
use crate::migration::MigrationStatus;
use crate::settings::{MigrationCapabilityStatus, MigrationParameters};
use limosa_transport::{Address, AddressError};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// A command with its arguments, checked for shape but not for sense.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// `query-status`: answered with a [`StatusInfo`](crate::StatusInfo).
    QueryStatus,
    /// `stop`: pause the guest.
    Stop,
    /// `cont`: let it run.
    Cont,
    /// `quit`: end the VMM, once the answer is out.
    Quit,
    /// `migrate`: begin to send the guest; the answer does not wait for it.
    Migrate {
        /// Where to.
        address: Address,
        /// Whether to go on with a postcopy whose link broke.
        resume: bool,
    },
    /// `migrate-incoming`: listen for a guest.
    MigrateIncoming {
        /// Where.
        address: Address,
        /// Whether the VMM ends if no guest comes of it.
        exit_on_error: bool,
    },
    /// `migrate-set-parameters`: those that are there.
    MigrateSetParameters(MigrationParameters),
    /// `query-migrate-parameters`: answered with all [`MigrationParameters`].
    QueryMigrateParameters,
    /// `migrate-set-capabilities`: all or nothing.
    MigrateSetCapabilities(Vec<MigrationCapabilityStatus>),
    /// `query-migrate-capabilities`: answered with a list of [`MigrationCapabilityStatus`].
    QueryMigrateCapabilities,
    /// `query-migrate`: answered with a [`MigrationInfo`](crate::MigrationInfo).
    QueryMigrate,
    /// `migrate_cancel`: no error if there is nothing to cancel.
    MigrateCancel,
    /// `migrate-continue`: go on with a migration that waits in this state.
    MigrateContinue {
        /// The state that it must be in.
        state: MigrationStatus,
    },
    /// `migrate-start-postcopy`: let the guest move now, and its memory follow.
    MigrateStartPostcopy,
    /// `migrate-pause`: close the connection of a postcopy; the guest runs on.
    MigratePause,
    /// `migrate-recover`: listen for the source of a paused postcopy.
    MigrateRecover {
        /// Where.
        address: Address,
    },
    /// `pmemsave`: write guest-physical memory to a file.
    PmemSave {
        /// First address.
        val: u64,
        /// Bytes. From the client: check it against the guest's RAM before writing anything.
        size: u64,
        /// Where to.
        filename: PathBuf,
    },
    /// One of the host's own, as listed by [`Commands::vendor_commands`](crate::Commands::vendor_commands).
    Other {
        /// Its name, which begins with `x-limosa-`.
        name: String,
        /// Its arguments, unread.
        arguments: Map<String, Value>,
    },
}

/// Names of the commands above but for [`Command::Other`], as `query-commands` lists them.
pub(crate) const NAMES: &[&str] = &[
    "query-status",
    "stop",
    "cont",
    "quit",
    "migrate",
    "migrate-incoming",
    "migrate-set-parameters",
    "query-migrate-parameters",
    "migrate-set-capabilities",
    "query-migrate-capabilities",
    "query-migrate",
    "migrate_cancel",
    "migrate-continue",
    "migrate-start-postcopy",
    "migrate-pause",
    "migrate-recover",
    "pmemsave",
];

impl Command {
    /// The command of this name; `None` if it is none of [`NAMES`].
    ///
    /// # Errors
    /// If the arguments are not those of the command.
    pub(crate) fn read(name: &str, arguments: Map<String, Value>) -> Result<Option<Self>, CommandError> {
        let mut arguments = Arguments::new(arguments);
        let command = match name {
            "query-status" => Self::QueryStatus,
            "stop" => Self::Stop,
            "cont" => Self::Cont,
            "quit" => Self::Quit,
            "migrate" => read_migrate(&mut arguments)?,
            "migrate-incoming" => Self::MigrateIncoming {
                exit_on_error: arguments.optional("exit-on-error")?.unwrap_or(true),
                address: read_destination(&mut arguments)?,
            },
            "migrate-set-parameters" => {
                Self::MigrateSetParameters(MigrationParameters::read(&mut arguments)?)
            }
            "query-migrate-parameters" => Self::QueryMigrateParameters,
            "migrate-set-capabilities" => Self::MigrateSetCapabilities(arguments.required("capabilities")?),
            "query-migrate-capabilities" => Self::QueryMigrateCapabilities,
            "query-migrate" => Self::QueryMigrate,
            "migrate_cancel" => Self::MigrateCancel,
            "migrate-continue" => Self::MigrateContinue { state: arguments.required("state")? },
            "migrate-start-postcopy" => Self::MigrateStartPostcopy,
            "migrate-pause" => Self::MigratePause,
            "migrate-recover" => {
                Self::MigrateRecover { address: read_uri(&arguments.required::<String>("uri")?)? }
            }
            "pmemsave" => Self::PmemSave {
                val: arguments.required("val")?,
                size: arguments.required("size")?,
                filename: arguments.required::<String>("filename")?.into(),
            },
            _ => return Ok(None),
        };
        arguments.finish()?;
        Ok(Some(command))
    }
}

fn read_migrate(arguments: &mut Arguments) -> Result<Command, CommandError> {
    // `detach` has no meaning: the command never waits.
    arguments.optional::<bool>("detach")?;
    let resume = arguments.optional("resume")?.unwrap_or(false);
    Ok(Command::Migrate { address: read_destination(arguments)?, resume })
}

/// The address in `uri`, or in the only entry of `channels`.
fn read_destination(arguments: &mut Arguments) -> Result<Address, CommandError> {
    let uri: Option<String> = arguments.optional("uri")?;
    let channels: Vec<Channel> = arguments.optional("channels")?.unwrap_or_default();
    match (uri, <[Channel; 1]>::try_from(channels)) {
        (Some(uri), Err(channels)) if channels.is_empty() => read_uri(&uri),
        (Some(_), _) => Err(CommandError::generic("'uri' and 'channels' are mutually exclusive")),
        (None, Ok([Channel(address)])) => Ok(address),
        (None, Err(channels)) if channels.is_empty() => {
            Err(CommandError::generic("need either 'uri' or 'channels' argument"))
        }
        (None, _) => Err(CommandError::generic("Channel list must have one entry")),
    }
}

fn read_uri(uri: &str) -> Result<Address, CommandError> {
    uri.parse().map_err(|error: AddressError| CommandError::generic(error.to_string()))
}
