//! `#[debug_handler]`: beside the function, code that is never called and only compiles if the
//! function is a handler. Each of its lines has the span of what it checks.

use proc_macro2::{Delimiter, Ident, Span, TokenStream, TokenTree};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::parse::{ParseStream, Parser};
use syn::{Error, GenericArgument, PathArguments, ReturnType, Token, Type};

use crate::signature::{Argument, Signature};

/// How many arguments a handler takes beside its job.
const EXTRACTORS: usize = 6;

/// How many `State<T>`s a handler takes beside its chunk.
const STATES: usize = 4;

/// The function as it is, followed by its checks or by what is wrong with its shape.
pub(crate) fn expand(options: TokenStream, item: TokenStream) -> TokenStream {
    let checks = checks(options, &item).unwrap_or_else(Error::into_compile_error);
    quote!(#item #checks)
}

fn checks(options: TokenStream, item: &TokenStream) -> syn::Result<TokenStream> {
    let named = state.parse2(options)?;
    let signature: Signature = syn::parse2(item.clone())?;
    let (types, returned) = parts(&signature)?;
    let (job, extractors) = (types[0], &types[1..]);
    let state = match named {
        Some(state) => state,
        None => assumed_state(extractors)?,
    };

    // What is checked of a function of several jobs differs, and with it the names of the checks.
    let in_chunk = inside(job, "Chunk");
    let of_chunk = if in_chunk.is_some() { "_of_chunk" } else { "" };
    let of_job = in_chunk.map(|job| Place::of(job).check("chunk", quote!(#job), None));
    let output = match in_chunk {
        Some(_) => quote!(),
        None => {
            let output = Place::of(job).output_of(job);
            quote!(#output,)
        }
    };
    let of_extractors = extractors.iter().map(|ty| {
        let check = format!("argument{of_chunk}");
        Place::of(ty).check(&check, quote!(#state, #ty), None)
    });
    let (handler, future) = (format!("handler{of_chunk}"), format!("future{of_chunk}"));
    // Nothing tells whether the function is in reach by its name or, in an `impl`, by `Self`. So a
    // copy of it is called, unless it mentions `Self`, which the copy could not.
    let is_associated = mentions_self_type(item);
    let copy = (!is_associated).then_some(item);
    let (name, values) = (&signature.name, values(types.len()));
    let (at_name, at_returned) = (Place::of(name), Place::of(returned));
    let ending = if signature.is_async {
        let types = quote!(#output ::logmill_jobs::handler_checks::Value, #returned);
        let handler = at_returned.check(&handler, types, None);
        let call = at_name.call(name, is_associated, &values);
        let sent = at_name.check("sent", at_name.inferred(), Some(call));
        quote!(#copy #handler #sent)
    } else if let Type::ImplTrait(_) = returned {
        // A type that cannot be written.
        let call = at_returned.call(name, is_associated, &values);
        let inferred = at_returned.inferred();
        let future = at_returned.check(&future, quote!(#output #inferred), Some(call));
        quote!(#copy #future)
    } else {
        at_returned.check(&handler, quote!(#output _, #returned), None)
    };

    let check = format_ident!("__logmill_jobs_check_{}", name);
    let attributes = signature.attributes.iter();
    let conditions = attributes.filter(|one| one.path().is_ident("cfg"));
    Ok(quote! {
        #(#conditions)*
        #[doc(hidden)]
        #[allow(warnings, clippy::all, clippy::pedantic)]
        fn #check(#(#values: #types),*) {
            #of_job
            #(#of_extractors)*
            #ending
        }
    })
}

/// The type in `state = App`, if there is one.
fn state(input: ParseStream<'_>) -> syn::Result<Option<Type>> {
    if input.is_empty() {
        return Ok(None);
    }
    let option = "the option of `debug_handler` is the type of the workers' state: `state = App`";
    let name: Ident = input
        .parse()
        .map_err(|error| Error::new(error.span(), option))?;
    if name != "state" {
        return Err(Error::new(name.span(), option));
    }
    input.parse::<Token![=]>()?;
    let ty = input.parse()?;
    input.parse::<Option<Token![,]>>()?;
    Ok(Some(ty))
}

/// The types of a handler's arguments, its job's first, and what it returns; errors for all in the
/// function's shape that no handler has.
fn parts(signature: &Signature) -> syn::Result<(Vec<&Type>, &Type)> {
    let mut errors = Errors(None);
    if let Some(unsafety) = &signature.unsafety {
        errors.add(unsafety, "a handler is not `unsafe`");
    }
    if !signature.generics.params.is_empty() {
        let error = "`#[debug_handler]` checks functions without generic parameters: put it on one \
                     that calls this one with the types of a job";
        errors.add(&signature.generics, error);
    }
    let mut types = Vec::new();
    for argument in &signature.arguments {
        match argument {
            Argument::Receiver(receiver) => errors.add(
                receiver,
                "a handler has no `self`: make it a function that takes what it needs as `State<T>`",
            ),
            Argument::Typed(ty) => types.push(ty),
        }
    }
    for (index, ty) in types.iter().enumerate() {
        match ty {
            Type::Reference(_) if index == 0 => {
                errors.add(ty, "a handler takes its job by value, not by reference");
            }
            Type::Reference(_) => errors.add(
                ty,
                "a handler takes its arguments by value: `State<T>`, `Context`, `Inputs<J>`, and types \
                 that implement `FromAttempt`",
            ),
            Type::ImplTrait(_) => errors.add(
                ty,
                "`#[debug_handler]` checks functions without generic arguments: name the type",
            ),
            _ => {}
        }
    }
    let is_of_chunk = types
        .first()
        .is_some_and(|job| inside(job, "Chunk").is_some());
    let (most, error) = match is_of_chunk {
        false => (
            EXTRACTORS,
            format!(
                "a handler takes its job and at most {EXTRACTORS} other arguments: put some of them \
                 into a type that implements `FromAttempt`"
            ),
        ),
        true => (
            STATES,
            format!(
                "a handler takes its chunk and at most {STATES} other arguments: take the state as a \
                 whole, or put some of its parts into a type that implements `FromRef`"
            ),
        ),
    };
    if let Some(surplus) = types.get(most + 1) {
        errors.add(surplus, &error);
    }
    if signature.arguments.is_empty() {
        errors.add(
            &signature.name,
            "a handler takes its job as the first argument",
        );
    }
    let returned = match &signature.output {
        ReturnType::Type(_, ty) => Some(&**ty),
        ReturnType::Default => {
            let error = "a handler returns `JobResult`, or a `Result<T, E>` with the output of its \
                         job and any error that can be displayed";
            errors.add(&signature.name, error);
            None
        }
    };
    match (errors.0, returned) {
        (None, Some(returned)) => Ok((types, returned)),
        (Some(error), _) => Err(error),
        (None, None) => Err(Error::new_spanned(
            &signature.name,
            "a handler returns a `Result`",
        )),
    }
}

struct Errors(Option<Error>);

impl Errors {
    fn add(&mut self, place: impl ToTokens, message: &str) {
        let error = Error::new_spanned(place, message);
        match &mut self.0 {
            Some(first) => first.combine(error),
            none => *none = Some(error),
        }
    }
}

/// The state of the workers where the attribute does not name it: that of the only `State<T>`.
fn assumed_state(extractors: &[&Type]) -> syn::Result<Type> {
    let mut states = extractors.iter().filter_map(|ty| inside(ty, "State"));
    let Some(first) = states.next() else {
        return Ok(syn::parse_quote!(()));
    };
    let text = |ty: &Type| ty.to_token_stream().to_string();
    match states.find(|other| text(other) != text(first)) {
        None => Ok(first.clone()),
        Some(another) => Err(Error::new_spanned(
            another,
            "which of these is the state of the workers, and which is a part of it? Name the state: \
             `#[debug_handler(state = App)]`",
        )),
    }
}

/// The type `T` of a `State<T>`, or of another type of this name.
fn inside<'a>(ty: &'a Type, name: &str) -> Option<&'a Type> {
    let Type::Path(path) = ty else {
        return None;
    };
    let last = path
        .path
        .segments
        .last()
        .filter(|last| last.ident == name)?;
    match &last.arguments {
        PathArguments::AngleBracketed(arguments) => match arguments.args.first()? {
            GenericArgument::Type(ty) => Some(ty),
            _ => None,
        },
        _ => None,
    }
}

/// Whether a function mentions `Self` other than in `impl`s and traits within its body, where it is
/// another type.
fn mentions_self_type(item: &TokenStream) -> bool {
    let mut signature: Vec<_> = item.clone().into_iter().collect();
    let body = signature.pop().map(TokenStream::from).unwrap_or_default();
    has_self(signature.into_iter().collect(), false) || has_self(body, true)
}

fn has_self(tokens: TokenStream, is_body: bool) -> bool {
    let mut is_in_item = false;
    for token in tokens {
        match token {
            TokenTree::Ident(ident) if is_body && (ident == "impl" || ident == "trait") => {
                is_in_item = true;
            }
            TokenTree::Ident(ident) if ident == "Self" && !is_in_item => return true,
            TokenTree::Group(group) if is_in_item => {
                is_in_item = group.delimiter() != Delimiter::Brace;
            }
            TokenTree::Group(group) if has_self(group.stream(), is_body) => return true,
            _ => {}
        }
    }
    false
}

fn values(count: usize) -> Vec<Ident> {
    let name = |index| Ident::new(&format!("argument_{index}"), Span::mixed_site());
    (0..count).map(name).collect()
}

/// Where errors of a check are reported: from the first token of something to its last. A macro cannot
/// join spans, but the compiler does so for the ends of an expression.
struct Place {
    first: Span,
    last: Span,
}

impl Place {
    fn of(tokens: impl ToTokens) -> Self {
        let tokens = tokens.into_token_stream().into_iter();
        let mut spans = tokens.map(|token| token.span());
        let first = spans.next().unwrap_or_else(Span::call_site);
        Self {
            first,
            last: spans.last().unwrap_or(first),
        }
    }

    /// Calls a check, of these types, with this value.
    fn check(&self, check: &str, types: TokenStream, value: Option<TokenStream>) -> TokenStream {
        let check = Ident::new(check, self.first);
        let path = quote_spanned!(self.first=> ::logmill_jobs::handler_checks::#check::<);
        let call = quote_spanned!(self.last=> >(#value););
        quote!(#path #types #call)
    }

    /// The output of a job, which is reported here if it is none.
    fn output_of(&self, job: &Type) -> TokenStream {
        let open = quote_spanned!(self.first=> <);
        let close = quote_spanned!(self.last=> as ::logmill_jobs::Job>::Output);
        quote!(#open #job #close)
    }

    /// A type that the compiler finds.
    fn inferred(&self) -> TokenStream {
        quote_spanned!(self.first=> _)
    }

    /// Calls the function that is checked.
    fn call(&self, function: &Ident, is_associated: bool, values: &[Ident]) -> TokenStream {
        let mut function = function.clone();
        function.set_span(self.first);
        let of_self = is_associated.then(|| quote_spanned!(self.first=> Self::));
        let call = quote_spanned!(self.last=> (#(#values),*));
        quote!(#of_self #function #call)
    }
}
