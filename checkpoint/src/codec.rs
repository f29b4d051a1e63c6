//! Serialising structures: the only module of the project that names bincode.
//!
//! bincode 2.0.1 is pinned and no longer maintained (RUSTSEC-2025-0141); behind these functions it can be replaced in one place, at the price
//! of a new wire version. Guards S7: a size limit before anything is decoded, and no bytes may be left over.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes that are encoded or decoded as one structure: an epoch's tail with 4 bytes of digest for each page of a 32 GiB guest, 32 MiB of held
/// output and 64 MiB of disk writes, and 32 MiB for all else. The same bound keeps claimed lengths from reserving more.
pub const MAX_ENCODED_BYTES: usize = 160 << 20;

/// A structure could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Larger than the limit.
    #[error("{what} of {bytes} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// What was encoded or decoded.
        what: &'static str,
        /// Its bytes, as far as they were counted.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The value cannot be written in this format.
    #[error("cannot encode {what}: {reason}")]
    Encode {
        /// The type.
        what: &'static str,
        /// What the encoder said.
        reason: String,
    },
    /// The bytes are not such a value.
    #[error("cannot decode {what}: {reason}; the peer is broken or speaks another version")]
    Decode {
        /// The type.
        what: &'static str,
        /// What the decoder said.
        reason: String,
    },
    /// The bytes hold more than the value.
    #[error("{extra} bytes are left over after {what}; the peer is broken or speaks another version")]
    Trailing {
        /// The type.
        what: &'static str,
        /// Bytes left over.
        extra: usize,
    },
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<MAX_ENCODED_BYTES>()
}

/// `value` as bytes.
///
/// # Errors
/// [`CodecError::Encode`], [`CodecError::TooLarge`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    let mut out = Vec::new();
    encode_into(value, &mut out)?;
    Ok(out)
}

/// Appends `value` as bytes to `out`, which is left as it was on an error; returns how many were appended.
///
/// # Errors
/// [`CodecError::Encode`], [`CodecError::TooLarge`].
pub fn encode_into<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<usize, CodecError> {
    let what = std::any::type_name::<T>();
    let start = out.len();
    let mut sink = Bounded { out, start };
    let written = bincode::serde::encode_into_std_write(value, &mut sink, config());
    let bytes = out.len() - start;
    match written {
        Ok(_) => Ok(bytes),
        Err(error) => {
            out.truncate(start);
            if let bincode::error::EncodeError::Io { inner, .. } = &error
                && inner.kind() == io::ErrorKind::FileTooLarge
            {
                return Err(CodecError::TooLarge { what, bytes, limit: MAX_ENCODED_BYTES });
            }
            Err(CodecError::Encode { what, reason: error.to_string() })
        }
    }
}

/// A value from bytes that hold it and nothing else.
///
/// # Errors
/// [`CodecError::TooLarge`], [`CodecError::Decode`], [`CodecError::Trailing`].
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let what = std::any::type_name::<T>();
    if bytes.len() > MAX_ENCODED_BYTES {
        return Err(CodecError::TooLarge { what, bytes: bytes.len(), limit: MAX_ENCODED_BYTES });
    }
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, config()).map_err(|error| CodecError::Decode { what, reason: error.to_string() })?;
    if used != bytes.len() {
        return Err(CodecError::Trailing { what, extra: bytes.len().saturating_sub(used) });
    }
    Ok(value)
}

/// Appends to a vector, up to the limit.
struct Bounded<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.out.len() - self.start + bytes.len() > MAX_ENCODED_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
