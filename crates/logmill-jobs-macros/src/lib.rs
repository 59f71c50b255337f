//! The macros of `logmill-jobs`; see the documentation of `logmill_jobs::Job` and
//! `logmill_jobs::debug_handler`.

mod attributes;
mod debug_handler;
mod signature;

use proc_macro::TokenStream;
use quote::quote;
use syn::{DeriveInput, parse_macro_input};

use self::attributes::Attributes;

/// Implements `logmill_jobs::Job` for a type that serde can serialize and deserialize.
///
/// The attribute `#[job(...)]` names the kind and gives its options; see `logmill_jobs::Job`.
#[proc_macro_derive(Job, attributes(job))]
pub fn derive_job(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    implement(&input)
        .unwrap_or_else(|error| error.to_compile_error())
        .into()
}

/// The function itself stays as it is. Beside it, the attribute adds code that is never called.
#[proc_macro_attribute]
pub fn debug_handler(options: TokenStream, item: TokenStream) -> TokenStream {
    debug_handler::expand(options.into(), item.into()).into()
}

fn implement(input: &DeriveInput) -> syn::Result<proc_macro2::TokenStream> {
    let Attributes {
        kind,
        aliases,
        output,
        inputs,
        options,
        unique,
        key,
    } = Attributes::of(input)?;
    let name = &input.ident;
    let (for_impl, of_type, bounds) = input.generics.split_for_impl();
    let unique = unique.map(|unique| {
        quote! {
            fn unique_key(
                &self,
            ) -> ::core::result::Result<
                ::core::option::Option<::std::string::String>,
                ::logmill_jobs::CodecError,
            > {
                #unique.map(::core::option::Option::Some)
            }
        }
    });
    let key = key.map(|key| {
        quote! {
            fn limit_key(
                &self,
            ) -> ::core::result::Result<
                ::core::option::Option<::std::string::String>,
                ::logmill_jobs::CodecError,
            > {
                #key.map(::core::option::Option::Some)
            }
        }
    });
    Ok(quote! {
        #[automatically_derived]
        impl #for_impl ::logmill_jobs::Job for #name #of_type #bounds {
            type Output = #output;
            type Inputs = #inputs;
            const KIND: &'static str = #kind;
            const ALIASES: &'static [&'static str] = &[#(#aliases),*];

            fn kind_options() -> ::logmill_jobs::KindOptions {
                ::logmill_jobs::KindOptions::new()#(#options)*
            }

            #unique
            #key
        }
    })
}
