//! Derives `limosa_vmstate::VmState`: one annotated struct becomes a device's wire format and its description.
//!
//! The attributes are documented with the trait's crate, `limosa-vmstate`. A mistake in them is a compile
//! error at the place of the mistake, with what would have been right.
//!
//! **Deliberately absent:** any knowledge of the encoding; the derive only lists fields in order.
#![forbid(unsafe_code)]

mod attributes;
mod expand;
#[cfg(test)]
mod tests;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `VmState` for a struct with named fields, each of which is on the wire unless it says `skip`.
#[proc_macro_derive(VmState, attributes(vmstate))]
pub fn derive_vm_state(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand::vm_state(&input).unwrap_or_else(|error| error.to_compile_error()).into()
}
