//! Arguments of a waiting job and of a new call as one.

use crate::Job;
use crate::error::EnqueueError;
use crate::mill::Mill;
use crate::user_code;

/// Makes the encoded arguments of one job from those of the old one, which are encoded as their codec's
/// tag says, and those of a call.
pub(crate) type Merge<'a> = dyn Fn(Option<&[u8]>, &[u8]) -> Result<Vec<u8>, EnqueueError> + 'a;

/// Merges by a function of the user, which gets the arguments of the call once they are decoded.
pub(crate) fn by<J: Job>(
    mill: &Mill,
    merge: fn(J, J) -> J,
    new: &[u8],
) -> impl Fn(Option<&[u8]>, &[u8]) -> Result<Vec<u8>, EnqueueError> {
    let (mill, new) = (mill.clone(), new.to_vec());
    move |tag, old| {
        let codec = &mill.inner.codec;
        let old = codec.decode::<J>(tag, old).map_err(EnqueueError::Encode)?;
        let own = codec.tag().map(str::as_bytes);
        let new = codec.decode::<J>(own, &new).map_err(EnqueueError::Encode)?;
        let merged = user_code::call(|| merge(old, new));
        let merged = merged.map_err(|panic| EnqueueError::Encode(panic.into()))?;
        mill.inner.encoded(&merged, |bytes| Ok(bytes.to_vec()))
    }
}
