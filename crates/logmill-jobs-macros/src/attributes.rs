//! What `#[job(...)]` says.

use proc_macro2::TokenStream;
use quote::{quote, quote_spanned};
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Expr, Ident, LitStr, Member, Token, Type, parenthesized};

/// The options of a kind that take an expression of the same name.
const OPTIONS: [&str; 9] = [
    "queue",
    "max_retries",
    "backoff",
    "timeout",
    "grace",
    "priority",
    "expires_after",
    "keep_results",
    "cost",
];

pub(crate) struct Attributes {
    pub(crate) kind: LitStr,
    pub(crate) aliases: Vec<LitStr>,
    pub(crate) output: Type,
    pub(crate) inputs: Type,
    /// Calls of the methods of `KindOptions`.
    pub(crate) options: Vec<TokenStream>,
    /// An expression for the key within which a job is unique.
    pub(crate) unique: Option<TokenStream>,
    /// An expression for the key that limits count by.
    pub(crate) key: Option<TokenStream>,
}

impl Attributes {
    pub(crate) fn of(input: &DeriveInput) -> syn::Result<Self> {
        let mut kind = None;
        let mut attributes = Self {
            kind: LitStr::new("", input.ident.span()),
            aliases: Vec::new(),
            output: syn::parse_quote!(()),
            inputs: syn::parse_quote!(()),
            options: Vec::new(),
            unique: None,
            key: None,
        };
        let ours = input.attrs.iter().filter(|one| one.path().is_ident("job"));
        for attribute in ours {
            attribute.parse_nested_meta(|meta| attributes.read(&meta, &mut kind, input))?;
        }
        let Some(kind) = kind else {
            return Err(syn::Error::new(
                input.ident.span(),
                "a job needs a kind, the name under which it is stored: \
                 #[job(kind = \"send_welcome\")]",
            ));
        };
        Ok(Self { kind, ..attributes })
    }

    fn read(
        &mut self,
        meta: &ParseNestedMeta<'_>,
        kind: &mut Option<LitStr>,
        input: &DeriveInput,
    ) -> syn::Result<()> {
        let Some(name) = meta.path.get_ident().map(Ident::to_string) else {
            return Err(meta.error("not an option of a job"));
        };
        match name.as_str() {
            "kind" => *kind = Some(text_of_kind(meta)?),
            "alias" => self.aliases.push(text_of_kind(meta)?),
            "inputs" => self.inputs = meta.value()?.parse()?,
            "output" => self.output = meta.value()?.parse()?,
            "unique" => self.unique = Some(key_of(meta, input)?),
            "key" => self.key = Some(key_of(meta, input)?),
            option if OPTIONS.contains(&option) => {
                let value: Expr = meta.value()?.parse()?;
                let method = Ident::new(option, meta.path.span());
                let span = value.span();
                self.options.push(quote_spanned!(span=> .#method(#value)));
            }
            _ => {
                let known = "kind, alias, output, inputs, unique, key, queue, max_retries, backoff, \
                             timeout, grace, priority, expires_after, keep_results, cost";
                return Err(meta.error(format!("not an option of a job; there are {known}")));
            }
        }
        Ok(())
    }
}

fn text_of_kind(meta: &ParseNestedMeta<'_>) -> syn::Result<LitStr> {
    let text: LitStr = meta.value()?.parse()?;
    match text.value().len() {
        1..=255 => Ok(text),
        _ => Err(syn::Error::new(text.span(), "a kind has 1 to 255 bytes")),
    }
}

/// The key that fields give: `unique` of all fields, `unique = "user"` of one, `unique("user",
/// "day")` of several.
fn key_of(meta: &ParseNestedMeta<'_>, input: &DeriveInput) -> syn::Result<TokenStream> {
    let mut named = Vec::new();
    if meta.input.peek(Token![=]) {
        named.push(meta.value()?.parse::<LitStr>()?);
    } else if meta.input.peek(syn::token::Paren) {
        let content;
        parenthesized!(content in meta.input);
        named.extend(content.parse_terminated(<LitStr as syn::parse::Parse>::parse, Token![,])?);
    }
    let fields = fields_of(input, meta)?;
    let chosen = match named.is_empty() {
        true => fields,
        false => named
            .iter()
            .map(|name| find(&fields, name))
            .collect::<syn::Result<_>>()?,
    };
    let parts = chosen.iter().map(|field| quote!(&self.#field));
    Ok(quote!(::logmill_jobs::key_of(&(#(#parts,)*))))
}

fn find(fields: &[Member], name: &LitStr) -> syn::Result<Member> {
    let is_named = |field: &&Member| match field {
        Member::Named(field) => *field == name.value(),
        Member::Unnamed(index) => index.index.to_string() == name.value(),
    };
    let missing = || syn::Error::new(name.span(), "the type has no field of this name");
    fields.iter().find(is_named).cloned().ok_or_else(missing)
}

fn fields_of(input: &DeriveInput, meta: &ParseNestedMeta<'_>) -> syn::Result<Vec<Member>> {
    match &input.data {
        Data::Struct(data) => Ok(data.fields.members().collect()),
        _ => Err(meta.error(
            "the key of a type that is not a struct cannot be made of fields; \
             implement `logmill_jobs::Job` by hand",
        )),
    }
}
