//! RAM as the first live entry of the savevm list: `ram`, version 4 (wire 3).

mod channels;
mod counters;
mod handler;
mod load;
mod locate;
mod population;
mod records;
mod save;
mod xbzrle_cache;

pub use counters::{RamCounters, RamStatistics};
pub use handler::RamHandler;
pub(crate) use load::{OnLoss, PostcopyRam, RamArrivals, RamLoad};
pub(crate) use save::UrgentPath;
