//! The secret that a sender and its receiver share.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// What every serialized secret begins with.
const PREFIX: &str = "whsec_";
/// How many bytes a key has, by the specification.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;
/// The length of keys that are made here: that of what HMAC-SHA256 returns.
const GENERATED: usize = 32;

/// Takes secrets with and without padding, as both are handed out.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The secret that a sender and its receiver share: a key of 24 to 64 bytes, written as `whsec_` and
/// its base64.
///
/// Its `Debug` form does not show it.
///
/// ```
/// use logmill_jobs::webhooks::Secret;
///
/// let given: Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse()?;
/// assert_eq!(format!("{given:?}"), "Secret(..)");
///
/// let new = Secret::generate()?; // for a new receiver, who gets it as this text:
/// assert!(new.expose().starts_with("whsec_"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Secret(Box<[u8]>);

/// A text or key that is not a secret of webhooks. It does not say which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The text has another form.
    #[error("not a secret of webhooks: it has the form whsec_ and base64")]
    Form,
    /// The key is too short or too long.
    #[error("a secret of webhooks has a key of 24 to 64 bytes, and this one has {0}")]
    Length(usize),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes for a secret")]
    Random,
}

impl Secret {
    /// A secret with this key, of 24 to 64 bytes.
    ///
    /// # Errors
    /// The key has another length.
    pub fn from_key(key: &[u8]) -> Result<Self, SecretError> {
        match LENGTHS.contains(&key.len()) {
            true => Ok(Self(key.into())),
            false => Err(SecretError::Length(key.len())),
        }
    }

    /// A new secret, of 32 random bytes of the system.
    ///
    /// # Errors
    /// The system gives none.
    pub fn generate() -> Result<Self, SecretError> {
        let mut key = [0; GENERATED];
        getrandom::fill(&mut key).map_err(|_| SecretError::Random)?;
        Ok(Self(key.into()))
    }

    /// The secret as text, to be handed to a receiver or stored where secrets are.
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let encoded = text.strip_prefix(PREFIX).ok_or(SecretError::Form)?;
        let key = LENIENT.decode(encoded).map_err(|_| SecretError::Form)?;
        Self::from_key(&key)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_a_prefix_and_a_key_of_24_to_64_bytes() {
        let of = |length| format!("{PREFIX}{}", STANDARD.encode(vec![7; length]));
        for length in [24, 25, 32, 64] {
            let secret: Secret = of(length).parse().unwrap();
            assert_eq!(secret.expose(), of(length));
            let unpadded = of(length).trim_end_matches('=').parse::<Secret>();
            assert_eq!(unpadded.unwrap().key(), secret.key());
        }
        for length in [0, 23, 65] {
            let refused = of(length).parse::<Secret>().unwrap_err();
            assert_eq!(refused, SecretError::Length(length));
        }
        for text in [
            "",
            "whsec",
            "WHSEC_AAAA",
            "whsec_*",
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        ] {
            assert_eq!(
                text.parse::<Secret>().unwrap_err(),
                SecretError::Form,
                "{text}"
            );
        }
    }

    #[test]
    fn generated_secrets_differ_and_can_be_parsed() {
        let (one, other) = (Secret::generate().unwrap(), Secret::generate().unwrap());
        assert_ne!(one.key(), other.key());
        assert_eq!(one.expose().parse::<Secret>().unwrap().key(), one.key());
    }
}
