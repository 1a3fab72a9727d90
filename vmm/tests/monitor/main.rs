//! Hosts as their clients see them: QMP over a unix socket, whole migrations driven as an operator drives them.

mod arrivals;
mod doubt;
mod life;
mod memory;
mod postcopy;
#[path = "../ring/mod.rs"]
mod ring;
mod settings;
mod stage;
mod vendor;
