//! Reads the fields of an encoded message without knowing its type.
//!
//! In: bytes. Out: field numbers with their raw values, slices of the input.
//!
//! **Invariant:** copies nothing and never panics, whatever the bytes.

/// The raw value of one field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Raw<'a> {
    /// A varint.
    Varint(u64),
    /// Eight bytes, little endian.
    Fixed64(u64),
    /// Four bytes, little endian.
    Fixed32(u32),
    /// Text, bytes, a message, or packed scalars.
    Bytes(&'a [u8]),
}

/// The bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// All fields of a message in the order of the bytes.
pub(super) fn fields(mut bytes: &[u8]) -> Result<Vec<(u32, Raw<'_>)>, Malformed> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).map_err(|_| Malformed)?;
        out.push((number, value(key & 7, &mut bytes)?));
    }
    Ok(out)
}

/// Packed scalars of one wire type.
pub(super) fn packed<'a>(mut bytes: &'a [u8], sample: Raw<'_>) -> Result<Vec<Raw<'a>>, Malformed> {
    let wire_type = match sample {
        Raw::Varint(_) => 0,
        Raw::Fixed64(_) => 1,
        Raw::Fixed32(_) => 5,
        Raw::Bytes(_) => return Err(Malformed),
    };
    let mut out = Vec::new();
    while !bytes.is_empty() {
        out.push(value(wire_type, &mut bytes)?);
    }
    Ok(out)
}

fn value<'a>(wire_type: u64, bytes: &mut &'a [u8]) -> Result<Raw<'a>, Malformed> {
    match wire_type {
        0 => Ok(Raw::Varint(varint(bytes)?)),
        1 => {
            let (head, rest) = bytes.split_first_chunk::<8>().ok_or(Malformed)?;
            *bytes = rest;
            Ok(Raw::Fixed64(u64::from_le_bytes(*head)))
        }
        2 => {
            let len = usize::try_from(varint(bytes)?).map_err(|_| Malformed)?;
            let (head, rest) = bytes.split_at_checked(len).ok_or(Malformed)?;
            *bytes = rest;
            Ok(Raw::Bytes(head))
        }
        5 => {
            let (head, rest) = bytes.split_first_chunk::<4>().ok_or(Malformed)?;
            *bytes = rest;
            Ok(Raw::Fixed32(u32::from_le_bytes(*head)))
        }
        // Groups are not in proto3.
        _ => Err(Malformed),
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut out = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(Malformed)?;
        *bytes = rest;
        out |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(out);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_slices_and_cut_bytes_are_refused() {
        let bytes = [0x0a, 0x02, b'h', b'i', 0x10, 0x96, 0x01];
        assert_eq!(fields(&bytes), Ok(vec![(1, Raw::Bytes(b"hi")), (2, Raw::Varint(150))]));
        for cut in [1, 2, 3, 5, 6] {
            assert_eq!(fields(&bytes[..cut]), Err(Malformed), "{cut}");
        }
    }
}
