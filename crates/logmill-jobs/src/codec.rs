//! How jobs and results become bytes, and bytes become jobs: a format of serde, and layers around
//! it, such as a compression. A record names both, so that each job is decoded as it was encoded.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format of arguments and results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// JSON: operators can read it, and fields can be added. The default.
    #[default]
    Json,
    /// MessagePack, with the names of fields, which can be added.
    #[cfg(feature = "msgpack")]
    MessagePack,
    /// postcard: the smallest, without names. A type whose fields change no longer decodes the jobs
    /// that wait.
    #[cfg(feature = "postcard")]
    Postcard,
}

impl Format {
    const ALL: &[Self] = &[
        Self::Json,
        #[cfg(feature = "msgpack")]
        Self::MessagePack,
        #[cfg(feature = "postcard")]
        Self::Postcard,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            #[cfg(feature = "msgpack")]
            Self::MessagePack => "msgpack",
            #[cfg(feature = "postcard")]
            Self::Postcard => "postcard",
        }
    }

    fn encode(self, value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), CodecError> {
        match self {
            Self::Json => serde_json::to_writer(&mut *out, value).map_err(CodecError::new),
            #[cfg(feature = "msgpack")]
            Self::MessagePack => {
                rmp_serde::encode::write_named(out, value).map_err(CodecError::new)
            }
            #[cfg(feature = "postcard")]
            Self::Postcard => match postcard::to_io(value, &mut *out) {
                Ok(_) => Ok(()),
                Err(error) => Err(CodecError::new(error)),
            },
        }
    }

    #[inline(always)]
    fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, CodecError> {
        match self {
            Self::Json => serde_json::from_slice(bytes).map_err(CodecError::new),
            #[cfg(feature = "msgpack")]
            Self::MessagePack => rmp_serde::from_slice(bytes).map_err(CodecError::new),
            #[cfg(feature = "postcard")]
            Self::Postcard => postcard::from_bytes(bytes).map_err(CodecError::new),
        }
    }
}

/// A layer around the format: compression, encryption.
///
/// It is named in each record. To change a key, register a layer of another name and keep the old
/// one for as long as jobs and results of it are there.
pub trait Layer: Send + Sync + 'static {
    /// The name that is stored: 1 to 32 bytes of letters, digits, `-` and `_`.
    fn name(&self) -> &str;

    /// Wraps encoded bytes.
    ///
    /// # Errors
    /// Fails the enqueue, or the attempt whose output it is.
    fn wrap(&self, bytes: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>>;

    /// Unwraps what [`wrap`](Self::wrap) made, also in an earlier process.
    ///
    /// # Errors
    /// Fails the attempt at the job.
    fn unwrap<'a>(&self, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, Box<dyn Error + Send + Sync>>;
}

/// Arguments or a result could not be encoded or decoded.
#[derive(Debug)]
pub struct CodecError(Box<dyn Error + Send + Sync>);

impl CodecError {
    pub(crate) fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

/// A panic while a value was encoded.
impl From<String> for CodecError {
    fn from(panic: String) -> Self {
        Self::new(panic)
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for CodecError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// The format and layers of a mill: what it encodes with, and what it can decode.
#[derive(Clone, Default)]
pub(crate) struct Codec {
    format: Format,
    /// What new records are wrapped in.
    layer: Option<Arc<dyn Layer>>,
    /// Layers of older records.
    others: Vec<Arc<dyn Layer>>,
    /// What new records say; None for plain JSON.
    tag: Option<Arc<str>>,
}

impl Codec {
    pub(crate) fn new(
        format: Format,
        layer: Option<Arc<dyn Layer>>,
        others: Vec<Arc<dyn Layer>>,
    ) -> Self {
        let tag = match &layer {
            None if format == Format::Json => None,
            None => Some(format.name().into()),
            Some(layer) => Some(format!("{}+{}", format.name(), layer.name()).into()),
        };
        Self {
            format,
            layer,
            others,
            tag,
        }
    }

    /// What a record says of how it is encoded, if it is not plain JSON.
    pub(crate) fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Appends the encoded value.
    #[inline]
    pub(crate) fn encode(
        &self,
        value: &impl Serialize,
        out: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        match &self.layer {
            None => self.format.encode(value, out),
            Some(layer) => {
                let mut plain = Vec::new();
                self.format.encode(value, &mut plain)?;
                out.extend(layer.wrap(&plain).map_err(CodecError)?);
                Ok(())
            }
        }
    }

    /// Decodes a value as the record says that it was encoded.
    #[inline(always)]
    pub(crate) fn decode<T: DeserializeOwned>(
        &self,
        tag: Option<&[u8]>,
        bytes: &[u8],
    ) -> Result<T, CodecError> {
        match tag {
            None => Format::Json.decode(bytes),
            Some(tag) => self.decode_tagged(tag, bytes),
        }
    }

    fn decode_tagged<T: DeserializeOwned>(
        &self,
        tag: &[u8],
        bytes: &[u8],
    ) -> Result<T, CodecError> {
        let unknown = || {
            let tag = tag.escape_ascii();
            CodecError::new(format!("it is encoded as {tag}, which is not set up here"))
        };
        let text = std::str::from_utf8(tag).map_err(|_| unknown())?;
        let (format, layer) = match text.split_once('+') {
            None => (text, None),
            Some((format, layer)) => (format, Some(layer)),
        };
        let format = Format::ALL.iter().find(|one| one.name() == format);
        let format = *format.ok_or_else(unknown)?;
        let Some(layer) = layer else {
            return format.decode(bytes);
        };
        let mut layers = self.layer.iter().chain(&self.others);
        let layer = layers.find(|one| one.name() == layer).ok_or_else(unknown)?;
        format.decode(&layer.unwrap(bytes).map_err(CodecError)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Turns bits.
    struct Mask(&'static str, u8);

    impl Layer for Mask {
        fn name(&self) -> &str {
            self.0
        }

        fn wrap(&self, bytes: &[u8]) -> Result<Vec<u8>, Box<dyn Error + Send + Sync>> {
            Ok(bytes.iter().map(|byte| byte ^ self.1).collect())
        }

        fn unwrap<'a>(
            &self,
            bytes: &'a [u8],
        ) -> Result<Cow<'a, [u8]>, Box<dyn Error + Send + Sync>> {
            match bytes.is_empty() {
                true => Err("nothing there".into()),
                false => Ok(self.wrap(bytes)?.into()),
            }
        }
    }

    fn masked() -> Codec {
        let (new, old) = (Mask("m2", 0x22), Mask("m1", 0x11));
        Codec::new(Format::Json, Some(Arc::new(new)), vec![Arc::new(old)])
    }

    #[test]
    fn a_record_is_decoded_as_it_was_encoded() {
        let value = ("Ada".to_owned(), 36_u8);
        let mut bytes = Vec::new();
        masked().encode(&value, &mut bytes).unwrap();
        assert_eq!(masked().tag(), Some("json+m2"));
        let tag = Some(&b"json+m2"[..]);
        assert_eq!(masked().decode::<(String, u8)>(tag, &bytes).unwrap(), value);
        let old: Vec<_> = br#"["Ada",36]"#.iter().map(|byte| byte ^ 0x11).collect();
        let tag = Some(&b"json+m1"[..]);
        assert_eq!(masked().decode::<(String, u8)>(tag, &old).unwrap(), value);
        let plain = br#"["Ada",36]"#;
        assert_eq!(masked().decode::<(String, u8)>(None, plain).unwrap(), value);
    }

    #[test]
    fn a_record_that_cannot_be_decoded_says_why() {
        let error = |tag: Option<&[u8]>, bytes: &[u8]| {
            let decoded = masked().decode::<(String, u8)>(tag, bytes);
            decoded.unwrap_err().to_string()
        };
        let unknown = "it is encoded as json+m3, which is not set up here";
        assert_eq!(error(Some(b"json+m3"), b"x"), unknown);
        assert!(error(Some(b"\xff"), b"x").contains("encoded as \\xff"));
        assert_eq!(error(Some(b"json+m1"), b""), "nothing there");
        assert!(error(None, b"[]").contains("invalid length 0"));
    }
}
