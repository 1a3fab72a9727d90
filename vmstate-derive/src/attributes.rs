//! `#[vmstate(...)]` as data, with everything that can be wrong in it.

use proc_macro2::Span;
use syn::ext::IdentExt;
use syn::meta::ParseNestedMeta;
use syn::{Attribute, Error, Expr, Field, Ident, LitInt, LitStr, Path, Result, Token, Type};

const STRUCT_ATTRIBUTES: &str =
    "name, version, minimum_version, pre_save, pre_load, post_load, needed and crate";
const FIELD_ATTRIBUTES: &str =
    "skip, name, since, exists, timer, equal, buffer, bitmap, count, max and subsection";

/// Longest name that a `str8` of the wire can carry.
const NAME_BYTES_MAX: usize = 255;

/// What the attributes of the struct say.
pub(crate) struct StructAttributes {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) minimum_version: u32,
    pub(crate) pre_save: Option<Path>,
    pub(crate) pre_load: Option<Path>,
    pub(crate) post_load: Option<Path>,
    pub(crate) needed: Option<Path>,
    /// The crate that has the traits.
    pub(crate) runtime: Path,
}

/// One field of the struct that is on the wire.
pub(crate) struct WireField {
    pub(crate) ident: Ident,
    pub(crate) ty: Type,
    /// In descriptions and messages.
    pub(crate) name: String,
    pub(crate) since: u32,
    pub(crate) exists: Option<Path>,
    pub(crate) encoding: Encoding,
}

/// How a field is on the wire.
pub(crate) enum Encoding {
    Plain,
    Timer,
    Equal,
    Buffer,
    Bitmap,
    Variable {
        content: Content,
        count: Ident,
        max: Expr,
    },
    /// Without a predicate the field is an `Option`.
    Subsection {
        needed: Option<Path>,
    },
}

/// What a field of variable length has in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Elements,
    Bytes,
    Bits,
}

impl StructAttributes {
    pub(crate) fn parse(ident: &Ident, attributes: &[Attribute]) -> Result<Self> {
        let mut name: Option<LitStr> = None;
        let mut version = None;
        let mut minimum_version = None;
        let (mut pre_save, mut pre_load, mut post_load, mut needed) = (None, None, None, None);
        let mut runtime = None;
        for_each(attributes, |meta| match key(meta).as_str() {
            "name" => once(meta, &mut name, |meta| meta.value()?.parse()),
            "version" => once(meta, &mut version, integer),
            "minimum_version" => once(meta, &mut minimum_version, integer),
            "pre_save" => once(meta, &mut pre_save, path),
            "pre_load" => once(meta, &mut pre_load, path),
            "post_load" => once(meta, &mut post_load, path),
            "needed" => once(meta, &mut needed, path),
            "crate" => once(meta, &mut runtime, path),
            _ => Err(unknown(meta, "a struct", STRUCT_ATTRIBUTES)),
        })?;

        let Some(name) = name else {
            return Err(Error::new(
                ident.span(),
                "missing #[vmstate(name = \"...\")]: the name of the device's description on the wire",
            ));
        };
        let length = name.value().len();
        if !(1..=NAME_BYTES_MAX).contains(&length) {
            return Err(Error::new(
                name.span(),
                format!("the name has {length} bytes; expected 1 to {NAME_BYTES_MAX}"),
            ));
        }
        let version = version.map_or(1, |(version, _)| version);
        let minimum_version = match minimum_version {
            Some((minimum, span)) if minimum > version => {
                let message = format!("minimum_version {minimum} is newer than version {version}");
                return Err(Error::new(span, message));
            }
            Some((minimum, _)) => minimum,
            None => version,
        };
        Ok(Self {
            name: name.value(),
            version,
            minimum_version,
            pre_save,
            pre_load,
            post_load,
            needed,
            runtime: runtime.unwrap_or_else(|| syn::parse_quote!(::limosa_vmstate)),
        })
    }
}

impl WireField {
    /// What `field` of a struct of `version` says; `None` if it is not on the wire.
    pub(crate) fn parse(field: &Field, version: u32) -> Result<Option<Self>> {
        let ident = field.ident.clone().expect("the struct's fields are named");
        let mut words = FieldWords::default();
        for_each(&field.attrs, |meta| words.take(meta))?;
        if let Some(span) = words.skip {
            return match words.count_of_others() {
                0 => Ok(None),
                _ => Err(Error::new(span, "a skipped field is not on the wire; it can say nothing else")),
            };
        }
        let since = match words.since {
            Some((since, span)) if since > version => {
                let message = format!("since = {since}, but the struct's version is {version}");
                return Err(Error::new(span, message));
            }
            Some((since, _)) => since,
            None => 0,
        };
        let name = match &words.name {
            Some(name) => name.value(),
            None if is_type(&field.ty, "Unused") => "unused".to_owned(),
            None => ident.unraw().to_string(),
        };
        let exists = words.exists.take();
        let conditional = since > 0 || exists.is_some();
        let encoding = words.encoding(&ident, &field.ty)?;
        if conditional && matches!(encoding, Encoding::Subsection { .. }) {
            let message = "a subsection is conditional by itself; it takes neither `since` nor `exists`";
            return Err(Error::new(ident.span(), message));
        }
        Ok(Some(Self { ident, ty: field.ty.clone(), name, since, exists, encoding }))
    }
}

/// The words of one field, before they are looked at together.
#[derive(Default)]
struct FieldWords {
    skip: Option<Span>,
    name: Option<LitStr>,
    since: Option<(u32, Span)>,
    exists: Option<Path>,
    timer: Option<Span>,
    equal: Option<Span>,
    buffer: Option<Span>,
    bitmap: Option<Span>,
    count: Option<Ident>,
    max: Option<Expr>,
    subsection: Option<(Option<Path>, Span)>,
}

impl FieldWords {
    fn take(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let span = |meta: &ParseNestedMeta<'_>| Ok(meta.path.segments[0].ident.span());
        match key(meta).as_str() {
            "skip" => once(meta, &mut self.skip, span),
            "name" => once(meta, &mut self.name, |meta| meta.value()?.parse()),
            "since" => once(meta, &mut self.since, integer),
            "exists" => once(meta, &mut self.exists, path),
            "timer" => once(meta, &mut self.timer, span),
            "equal" => once(meta, &mut self.equal, span),
            "buffer" => once(meta, &mut self.buffer, span),
            "bitmap" => once(meta, &mut self.bitmap, span),
            "count" => once(meta, &mut self.count, field_name),
            "max" => once(meta, &mut self.max, |meta| meta.value()?.parse()),
            "subsection" => once(meta, &mut self.subsection, |meta| Ok((subsection(meta)?, span(meta)?))),
            _ => Err(unknown(meta, "a field", FIELD_ATTRIBUTES)),
        }
    }

    fn count_of_others(&self) -> usize {
        [
            self.name.is_some(),
            self.since.is_some(),
            self.exists.is_some(),
            self.timer.is_some(),
            self.equal.is_some(),
            self.buffer.is_some(),
            self.bitmap.is_some(),
            self.count.is_some(),
            self.max.is_some(),
            self.subsection.is_some(),
        ]
        .into_iter()
        .filter(|&said| said)
        .count()
    }

    fn encoding(self, ident: &Ident, ty: &Type) -> Result<Encoding> {
        let subsection_span = self.subsection.as_ref().map(|(_, span)| *span);
        let said: Vec<Span> = [self.timer, self.equal, self.buffer, self.bitmap, subsection_span]
            .into_iter()
            .flatten()
            .collect();
        if let [_, second, ..] = said[..] {
            let message = "a field is at most one of timer, equal, buffer, bitmap and subsection";
            return Err(Error::new(second, message));
        }
        match (self.count, self.max) {
            (Some(count), Some(max)) => {
                let content = match said[..] {
                    [] => Content::Elements,
                    [_] if self.buffer.is_some() => Content::Bytes,
                    [_] if self.bitmap.is_some() => Content::Bits,
                    [span, ..] => {
                        let message = "a field with a count has elements, or is a buffer or a bitmap";
                        return Err(Error::new(span, message));
                    }
                };
                Ok(Encoding::Variable { content, count, max })
            }
            (Some(count), None) => {
                let message =
                    format!("`{ident}` needs a limit: max = N, the most elements that a stream may announce");
                Err(Error::new(count.span(), message))
            }
            (None, Some(_)) => {
                let message = format!("`{ident}` has a max but no count = field");
                Err(Error::new(ident.span(), message))
            }
            (None, None) if is_type(ty, "Vec") => Err(Error::new(
                ident.span(),
                format!("`{ident}` is a Vec: it needs count = an earlier field, and max = N"),
            )),
            (None, None) => Ok(match self.subsection {
                Some((needed, span)) if needed.is_none() && !is_type(ty, "Option") => {
                    let message = "a subsection is an Option, or says when it is needed: \
                                   subsection(needed = Self::predicate)";
                    return Err(Error::new(span, message));
                }
                Some((needed, _)) => Encoding::Subsection { needed },
                None if self.timer.is_some() => Encoding::Timer,
                None if self.equal.is_some() => Encoding::Equal,
                None if self.buffer.is_some() => Encoding::Buffer,
                None if self.bitmap.is_some() => Encoding::Bitmap,
                None => Encoding::Plain,
            }),
        }
    }
}

/// Calls `take` for each word in each `#[vmstate(...)]`.
fn for_each(
    attributes: &[Attribute],
    mut take: impl FnMut(&ParseNestedMeta<'_>) -> Result<()>,
) -> Result<()> {
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("vmstate")) {
        attribute.parse_nested_meta(|meta| take(&meta))?;
    }
    Ok(())
}

fn key(meta: &ParseNestedMeta<'_>) -> String {
    meta.path.get_ident().map(|ident| ident.unraw().to_string()).unwrap_or_default()
}

/// Fills `slot` with what `parse` finds, unless it is filled already.
fn once<T>(
    meta: &ParseNestedMeta<'_>,
    slot: &mut Option<T>,
    parse: impl FnOnce(&ParseNestedMeta<'_>) -> Result<T>,
) -> Result<()> {
    if slot.is_some() {
        return Err(meta.error(format!("`{}` is said twice", key(meta))));
    }
    *slot = Some(parse(meta)?);
    Ok(())
}

fn unknown(meta: &ParseNestedMeta<'_>, owner: &str, known: &str) -> Error {
    meta.error(format!("unknown vmstate attribute `{}`; {owner} may have {known}", key(meta)))
}

fn integer(meta: &ParseNestedMeta<'_>) -> Result<(u32, Span)> {
    let literal: LitInt = meta.value()?.parse()?;
    Ok((literal.base10_parse()?, literal.span()))
}

/// A path to a function, bare or in quotes.
fn path(meta: &ParseNestedMeta<'_>) -> Result<Path> {
    let value = meta.value()?;
    if value.peek(LitStr) { value.parse::<LitStr>()?.parse() } else { value.parse() }
}

/// The name of a field, bare or in quotes.
fn field_name(meta: &ParseNestedMeta<'_>) -> Result<Ident> {
    let value = meta.value()?;
    if value.peek(LitStr) { value.parse::<LitStr>()?.parse() } else { value.parse() }
}

fn subsection(meta: &ParseNestedMeta<'_>) -> Result<Option<Path>> {
    let mut needed = None;
    if meta.input.is_empty() || meta.input.peek(Token![,]) {
        return Ok(None);
    }
    meta.parse_nested_meta(|inner| match key(&inner).as_str() {
        "needed" => once(&inner, &mut needed, path),
        _ => Err(unknown(&inner, "a subsection", "only needed")),
    })?;
    Ok(needed)
}

/// Whether `ty` is written as a path that ends in `name`.
fn is_type(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == name))
}
