//! Fields of stored values: each with its length before it.

/// Appends a field.
pub(crate) fn add(bytes: &mut Vec<u8>, field: &[u8]) {
    // What is longer than this no backend takes.
    let len = u32::try_from(field.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(field);
}

/// Takes a field from the front.
pub(crate) fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, after) = rest.split_first_chunk::<4>()?;
    let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
    let (field, after) = after.split_at_checked(len)?;
    *rest = after;
    Some(field)
}

pub(crate) fn take_text(rest: &mut &[u8]) -> Option<String> {
    String::from_utf8(take(rest)?.to_vec()).ok()
}

pub(crate) fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(take(rest)?.try_into().ok()?))
}

/// Takes a number of four bytes, which has no length before it.
pub(crate) fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_le_bytes(*number))
}
