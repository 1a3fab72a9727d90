//! The implementation that a derive writes.

use crate::attributes::{Content, Encoding, StructAttributes, WireField};
use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, Path, Result};

/// The `VmState` implementation of `input`.
pub(crate) fn vm_state(input: &DeriveInput) -> Result<TokenStream> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(input.ident.span(), "VmState can be derived for a struct only"));
    };
    let Fields::Named(named) = &data.fields else {
        let message = "VmState needs named fields: their names are part of the description";
        return Err(Error::new(input.ident.span(), message));
    };
    let attributes = StructAttributes::parse(&input.ident, &input.attrs)?;
    let mut fields = Vec::new();
    for field in &named.named {
        fields.extend(WireField::parse(field, attributes.version)?);
    }
    check_counts(&fields)?;
    number_repeated_names(&mut fields);
    Ok(implementation(input, &attributes, &fields))
}

/// Each count must be a plain field before its array: it is read first.
fn check_counts(fields: &[WireField]) -> Result<()> {
    for (index, field) in fields.iter().enumerate() {
        let Encoding::Variable { count, .. } = &field.encoding else { continue };
        let earlier = fields[..index].iter().find(|earlier| earlier.ident == *count);
        let problem = match earlier {
            None => {
                format!("`{count}` must be a field of the wire before `{}`, whose count it is", field.ident)
            }
            Some(WireField { encoding: Encoding::Plain | Encoding::Equal, .. }) => continue,
            Some(_) => format!("`{count}` must be a plain integer to be the count of `{}`", field.ident),
        };
        return Err(Error::new(count.span(), problem));
    }
    Ok(())
}

/// A name that several fields have gets their number among them appended, as in QEMU's descriptions.
fn number_repeated_names(fields: &mut [WireField]) {
    // Subsections are listed by their own names.
    let mut fields: Vec<&mut WireField> =
        fields.iter_mut().filter(|field| !matches!(field.encoding, Encoding::Subsection { .. })).collect();
    let names: Vec<String> = fields.iter().map(|field| field.name.clone()).collect();
    for (index, field) in fields.iter_mut().enumerate() {
        let is_same = |name: &&String| **name == names[index];
        if names.iter().filter(is_same).count() > 1 {
            let number = names[..index].iter().filter(is_same).count();
            field.name = format!("{}[{number}]", names[index]);
        }
    }
}

fn implementation(input: &DeriveInput, attributes: &StructAttributes, fields: &[WireField]) -> TokenStream {
    let StructAttributes { name, version, minimum_version, runtime, .. } = attributes;
    let ident = &input.ident;
    let (impl_generics, type_generics, where_clause) = input.generics.split_for_impl();
    let hooks = hooks(attributes);
    let sizes = fields.iter().map(|field| fixed_size(runtime, field));
    let counts = fields.iter().map(|field| set_count(runtime, field));
    let steps = fields.iter().map(|field| step(runtime, field));
    let subsections: Vec<TokenStream> =
        fields.iter().filter_map(|field| subsection(runtime, field)).collect();
    let name_checks = fields.iter().filter_map(|field| name_check(attributes, field));
    // A check in a constant fails already in `cargo check`, but there it cannot see type parameters.
    let (checks_outside, checks_inside) = if input.generics.params.is_empty() {
        (quote! { #(const _: () = #name_checks;)* }, TokenStream::new())
    } else {
        (TokenStream::new(), quote! { #(const { #name_checks };)* })
    };

    quote! {
        #checks_outside

        #[automatically_derived]
        impl #impl_generics #runtime::VmState for #ident #type_generics #where_clause {
            const NAME: &'static str = #name;
            const VERSION: u32 = #version;
            const MINIMUM_VERSION: u32 = #minimum_version;
            const FIXED_SIZE: bool = true #(&& #sizes)*;

            #hooks

            fn walk_fields<W: #runtime::Walk>(
                &mut self,
                walk: &mut W,
            ) -> ::core::result::Result<(), W::Error> {
                let _ = &walk;
                #(#counts)*
                #(#steps)*
                ::core::result::Result::Ok(())
            }

            fn walk_subsections<W: #runtime::Walk>(
                &mut self,
                walk: &mut W,
            ) -> ::core::result::Result<(), W::Error> {
                #checks_inside
                let _ = &walk;
                #(#subsections)*
                ::core::result::Result::Ok(())
            }
        }
    }
}

fn hooks(attributes: &StructAttributes) -> TokenStream {
    let runtime = &attributes.runtime;
    let result = quote! { ::core::result::Result<(), #runtime::HookError> };
    let pre_save = attributes.pre_save.as_ref().map(|hook| {
        quote! { fn pre_save(&mut self) -> #result { #runtime::HookOutcome::outcome(#hook(self)) } }
    });
    let pre_load = attributes.pre_load.as_ref().map(|hook| {
        quote! { fn pre_load(&mut self) -> #result { #runtime::HookOutcome::outcome(#hook(self)) } }
    });
    let post_load = attributes.post_load.as_ref().map(|hook| {
        quote! {
            fn post_load(&mut self, version: u32) -> #result {
                #runtime::HookOutcome::outcome(#hook(self, version))
            }
        }
    });
    let needed = attributes.needed.as_ref().map(|predicate| {
        quote! { fn needed(&self) -> bool { #predicate(self) } }
    });
    quote! { #needed #pre_save #pre_load #post_load }
}

/// An expression: whether the field always takes the same number of bytes.
fn fixed_size(runtime: &Path, field: &WireField) -> TokenStream {
    let ty = &field.ty;
    match &field.encoding {
        Encoding::Variable { .. } | Encoding::Subsection { .. } => quote! { false },
        _ if field.exists.is_some() => quote! { false },
        Encoding::Plain => quote_spanned! { ty.span() =>
            <<#ty as #runtime::Field>::Element as #runtime::Element>::FIXED_SIZE
        },
        Encoding::Timer | Encoding::Equal | Encoding::Buffer | Encoding::Bitmap => quote! { true },
    }
}

/// Sets a count from its array's length before the first field is written. A bitmap's count of bits cannot be
/// told from its words; the device keeps it.
fn set_count(runtime: &Path, field: &WireField) -> TokenStream {
    let WireField { ident, name, .. } = field;
    match &field.encoding {
        Encoding::Variable { content: Content::Elements | Content::Bytes, count, max } => quote! {
            #runtime::Walk::set_count(walk, #name, &mut self.#count, self.#ident.len(), #max)?;
        },
        _ => TokenStream::new(),
    }
}

fn step(runtime: &Path, field: &WireField) -> TokenStream {
    let WireField { ident, ty, name, since, .. } = field;
    let elements = quote_spanned! { ty.span() => #runtime::Field::elements(&mut self.#ident) };
    let slice = quote_spanned! { ty.span() => &mut self.#ident[..] };
    let call = match &field.encoding {
        Encoding::Plain => quote! { #runtime::Walk::elements(walk, #name, #elements)?; },
        Encoding::Timer => quote! { #runtime::Walk::timers(walk, #name, #elements)?; },
        Encoding::Equal => quote! { #runtime::Walk::equal(walk, #name, #elements)?; },
        Encoding::Buffer => quote! { #runtime::Walk::buffer(walk, #name, #slice)?; },
        Encoding::Bitmap => quote! { #runtime::Walk::bitmap(walk, #name, #slice)?; },
        Encoding::Variable { content, count, max } => {
            let method = match content {
                Content::Elements => quote! { variable_elements },
                Content::Bytes => quote! { variable_buffer },
                Content::Bits => quote! { variable_bitmap },
            };
            quote! { #runtime::Walk::#method(walk, #name, &mut self.#ident, self.#count, #max)?; }
        }
        Encoding::Subsection { .. } => return TokenStream::new(),
    };
    let carried = (*since > 0).then(|| quote! { #runtime::Walk::carries(walk, #since) });
    let exists = field.exists.as_ref().map(|predicate| quote! { #predicate(&*self) });
    match (carried, exists) {
        (None, None) => call,
        (Some(carried), None) => quote! { if #carried { #call } },
        (None, Some(exists)) => quote! { if #exists { #call } },
        (Some(carried), Some(exists)) => quote! { if #carried && #exists { #call } },
    }
}

fn subsection(runtime: &Path, field: &WireField) -> Option<TokenStream> {
    let WireField { ident, name, .. } = field;
    match &field.encoding {
        Encoding::Subsection { needed: Some(predicate) } => Some(quote! {
            let needed = W::SAVES && #predicate(&*self);
            #runtime::Walk::subsection(walk, #name, &mut self.#ident, needed)?;
        }),
        Encoding::Subsection { needed: None } => Some(quote! {
            #runtime::Walk::optional_subsection(walk, #name, &mut self.#ident)?;
        }),
        _ => None,
    }
}

/// An assertion that a subsection's name begins with its owner's; a loader knows it by that alone.
fn name_check(attributes: &StructAttributes, field: &WireField) -> Option<TokenStream> {
    let StructAttributes { name: owner, runtime, .. } = attributes;
    let Encoding::Subsection { needed } = &field.encoding else { return None };
    let ty = &field.ty;
    let state = match needed {
        Some(_) => quote! { #ty },
        None => quote! { <#ty as #runtime::OptionalSubsection>::State },
    };
    let message = format!(
        "the name of subsection `{}` must be {owner:?} and something more, such as \"{owner}/part\"",
        field.ident
    );
    Some(quote_spanned! { ty.span() =>
        assert!(#runtime::is_subsection_name(#owner, <#state as #runtime::VmState>::NAME), #message)
    })
}
