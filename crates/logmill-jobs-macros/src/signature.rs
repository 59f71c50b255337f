//! The signature of a function, as far as a handler's shape depends on it.
//!
//! The body is not parsed: while it is being written, an editor gets the function as it is.

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::parse::{Parse, ParseStream};
use syn::{Abi, Attribute, Generics, ReturnType, Token, Type, Visibility, parenthesized};

pub(crate) struct Signature {
    pub(crate) attributes: Vec<Attribute>,
    pub(crate) is_async: bool,
    pub(crate) unsafety: Option<Token![unsafe]>,
    pub(crate) name: Ident,
    pub(crate) generics: Generics,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) output: ReturnType,
}

pub(crate) enum Argument {
    /// `self` in any form.
    Receiver(TokenStream),
    Typed(Type),
}

impl Parse for Signature {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        let attributes = Attribute::parse_outer(input)?;
        input.parse::<Visibility>()?;
        let (mut is_async, mut unsafety) = (false, None);
        loop {
            let next = input.lookahead1();
            if next.peek(Token![fn]) {
                break;
            } else if next.peek(Token![async]) {
                input.parse::<Token![async]>()?;
                is_async = true;
            } else if next.peek(Token![unsafe]) {
                unsafety = Some(input.parse()?);
            } else if next.peek(Token![const]) {
                input.parse::<Token![const]>()?;
            } else if next.peek(Token![extern]) {
                input.parse::<Abi>()?;
            } else {
                return Err(input.error("`#[debug_handler]` belongs to a function"));
            }
        }
        input.parse::<Token![fn]>()?;
        let name = input.parse()?;
        let generics = input.parse()?;
        let inside;
        parenthesized!(inside in input);
        let arguments = inside.parse_terminated(Argument::parse, Token![,])?;
        let output = input.parse()?;
        // A `where` clause and the body.
        input.parse::<TokenStream>()?;
        Ok(Self {
            attributes,
            is_async,
            unsafety,
            name,
            generics,
            arguments: arguments.into_iter().collect(),
            output,
        })
    }
}

impl Parse for Argument {
    fn parse(input: ParseStream<'_>) -> syn::Result<Self> {
        Attribute::parse_outer(input)?;
        let (mut pattern, mut is_receiver) = (TokenStream::new(), false);
        // The pattern ends at a colon that is not one half of `::`.
        while !input.is_empty() && !input.peek(Token![,]) {
            if input.peek(Token![::]) {
                input.parse::<Token![::]>()?.to_tokens(&mut pattern);
            } else if input.peek(Token![:]) {
                break;
            } else {
                is_receiver = input.peek(Token![self]);
                input.parse::<TokenTree>()?.to_tokens(&mut pattern);
            }
        }
        if is_receiver && !input.peek(Token![:]) {
            return Ok(Self::Receiver(pattern));
        }
        input.parse::<Token![:]>()?;
        let ty = input.parse()?;
        Ok(match is_receiver {
            true => Self::Receiver(pattern),
            false => Self::Typed(ty),
        })
    }
}
