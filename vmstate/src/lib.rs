//! Device state as data: QEMU's body encoding and its description, from one annotated struct.
//!
//! An author of a device writes a struct and derives [`VmState`]. The order of its fields is the order on the wire;
//! saving, loading and the entry in the vmdescription all come from that one list, so they cannot disagree,
//! and a field that is neither carried nor marked `skip` cannot exist. What the savevm list holds is a
//! [`Device`]; a stream to load from is an [`Input`].
//!
//! ```
//! use limosa_vmstate::{Device, SliceInput, VmState};
//! use std::sync::{Arc, Mutex};
//!
//! /// A serial port; its thread and the savevm list share it.
//! #[derive(Default, VmState)]
//! #[vmstate(name = "serial", version = 3, minimum_version = 2, post_load = Self::check)]
//! struct Serial {
//!     divider: u16,
//!     line_control: u8,
//!     #[vmstate(since = 3)]
//!     fifo_control: u8,
//!     fifo_length: u8,
//!     #[vmstate(buffer, count = fifo_length, max = 16)]
//!     fifo: Vec<u8>,
//!     #[vmstate(subsection(needed = Self::is_timer_armed))]
//!     timer: SerialTimer,
//!     /// Where the port's output goes on this host.
//!     #[vmstate(skip)]
//!     output: Vec<u8>,
//! }
//!
//! #[derive(Default, VmState)]
//! #[vmstate(name = "serial/timer", version = 1)]
//! struct SerialTimer {
//!     #[vmstate(timer)]
//!     timeout: u64,
//! }
//!
//! impl Serial {
//!     fn is_timer_armed(&self) -> bool {
//!         self.timer.timeout != u64::MAX
//!     }
//!
//!     fn check(&mut self, _version: u32) -> Result<(), &'static str> {
//!         if self.divider == 0 { Err("a divider of 0 has no baud rate") } else { Ok(()) }
//!     }
//! }
//!
//! let port = Arc::new(Mutex::new(Serial { divider: 12, fifo: b"ok".to_vec(), ..Serial::default() }));
//! let mut devices: Vec<Box<dyn Device>> = vec![Box::new(Arc::clone(&port))];
//! let saved = devices[0].save()?;
//! assert_eq!(saved.body[..7], [0, 12, 0, 0, 2, b'o', b'k']);
//! assert_eq!(saved.body[7..21], *b"\x05\x0cserial/timer");
//!
//! let mut arrived = Serial::default();
//! arrived.load(3, &mut SliceInput::new(&saved.body))?;
//! assert_eq!(arrived.fifo, b"ok");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Fields
//!
//! | Field | On the wire | Type in the description |
//! |---|---|---|
//! | `bool`, `u8` to `u64`, `i8` to `i64` | big-endian, natural width | `bool`, `uint8`, `int64` and so on |
//! | a struct that derives [`VmState`] | its fields, then its subsections | `struct` |
//! | `[T; N]`, `[[T; N]; M]` of these | the elements, row by row | the element's |
//! | `Vec<T>` with `count = field, max = N` | as many elements as the earlier field says | the element's |
//! | [`Unused<N>`](Unused) | N zeros; anything is accepted | `unused_buffer`, named `unused` |
//! | `buffer`: `[u8; N]`, or `Vec<u8>` with `count`, `max` | raw bytes | `buffer` |
//! | `bitmap`: `[u64; N]`, or `Vec<u64>` with `count`, `max` in bits | big-endian words, bit 0 lowest in word 0 | `bitmap` |
//! | `timer`: `u64` or an array | expiry in ns; all ones is not armed | `timer` |
//! | `equal`: a scalar or an array | must equal the value here, which stays | `uint32 equal` and so on |
//! | `subsection(needed = f)`: a struct | announced by name; left alone if absent | in `subsections` |
//! | `subsection`: `Option` of a struct | the same; `None` if absent | in `subsections` |
//! | `skip` | nothing | none |
//!
//! Any carried field may have `name = "..."` (in the description and in messages), `since = n` (a stream of an
//! older version lacks it; the field keeps its value) and `exists = f` (a predicate on the fields before it).
//!
//! A count is set from its vector before saving, so the device need not keep it up to date. The count of a `bitmap` is of
//! bits, which its words do not tell: that one the device keeps. No vector grows beyond its `max`.
//!
//! # Structs
//!
//! `name` is required. `version` (1 by default) is what is written; `minimum_version` (the same, by default) is
//! the oldest that can be read. `pre_load = f`, `post_load = f`, `pre_save = f` are hooks:
//! `fn(&mut Self)`, the second with the stream's version as another argument, returning nothing or a
//! `Result` whose error fails the load or save. `needed = f` says whether the device has a section at all.
//! `crate = path` is for callers that know this crate by another name.
//!
//! A nested struct has no version on the wire; both sides must know the same one. After every struct, nested
//! ones too, come its subsections. The loader knows them by their name alone: it begins with the struct's own
//! name. So a nested struct must not have a name that another subsection of its owner begins with. A subsection
//! whose name could not be known does not compile:
//!
//! ```compile_fail,E0080
//! # use limosa_vmstate::VmState;
//! #[derive(VmState)]
//! #[vmstate(name = "serial")]
//! struct Serial {
//!     #[vmstate(subsection)]
//!     fifo: Option<Fifo>,
//! }
//!
//! #[derive(Default, VmState)]
//! #[vmstate(name = "fifo")] // "serial/fifo" is what it takes
//! struct Fifo {
//!     level: u8,
//! }
//! ```
//!
//! # Shared devices
//!
//! A device that its threads use while it is registered is registered as `Arc<Mutex<T>>`, of `std` or of
//! `parking_lot`, as above. The lock is held for one save or load. What the threads need besides the migrated
//! state, such as an open file, is a `skip` field of the same struct. There is no second adapter: a struct that
//! keeps its lock inside can implement [`Device`] in four lines by locking and delegating.
//!
//! # Trade-off taken
//!
//! One walk over the fields serves both directions, so saving takes `&mut self` too. A load that fails
//! leaves the device partly overwritten: copying every device first would cost time in the downtime, and a
//! destination whose load failed never runs its guest.
//!
//! **Deliberately absent:** section headers and footers, I/O, linked lists and trees of QEMU's own devices,
//! floating point, skipping a body of unknown type.
#![forbid(unsafe_code)]

mod description;
mod device;
mod error;
mod field;
mod input;
mod load;
mod path;
mod save;
mod scalar;
mod state;
mod subsection;
mod walk;

pub use description::{DescriptionError, body_length};
pub use device::{Device, SavedDevice};
pub use error::{HookError, LoadError, LoadProblem, SaveError, SaveProblem};
pub use field::{Element, Field, Unused};
pub use input::{Input, InputError, PEEK_MAX, SliceInput};
pub use limosa_vmstate_derive::VmState;
pub use path::FieldPath;
pub use scalar::{Count, Scalar, ScalarValue};
pub use state::{HookOutcome, VmState};
#[doc(hidden)]
pub use subsection::{OptionalSubsection, is_subsection_name};
pub use walk::{NESTING_MAX, Walk};
