//! The change log: which regions of this copy may differ from the other host's. A file beside the image, `<image>.lockstep`.
//!
//! Here: its format. In it: header and bitmap sectors (pure, [`mod@format`]), the bitmap in memory with what of it is durable (pure, [`marks`]), and the file ([`mod@file`]). Not here: when regions are
//! marked and cleared ([`crate::engine`], [`crate::mirror`]). Guards S4 for the copy of a returning host: a region is marked durably before the first write into it.
//!
//! ```text
//! offset  bytes
//!      0    512   header, first copy
//!   4096    512   header, second copy
//!   8192    512 each: bitmap sectors, as many as the disk needs
//!
//! header (little endian)
//!      0      8   "LKSTPCHG"
//!      8      4   format version, 1
//!     12      4   region size, 1 MiB
//!     16      8   disk id
//!     24      8   size of the disk in bytes
//!     32      8   current   }
//!     40      8   base      } data generations (crate::identity)
//!     48      8   joining   }
//!     56      8   sequence number, up by one with every update
//!     64      1   state: 1 consistent, 2 following, 3 copying
//!     65      7   zeros
//!     72      8   inode of the image file, 0: not known (a block device)
//!     80      8   when that inode was made, nanoseconds since 1970, 0: not known
//!     88    416   zeros
//!    504      8   xxh3-64 of the 504 bytes before
//!
//! bitmap sector
//!      0    496   3968 bits, region n of the disk in sector n / 3968, bit n % 3968; bit b in byte b / 8, from the lowest
//!    496      8   number of the sector
//!    504      8   xxh3-64 of the 504 bytes before
//! ```
//!
//! **The log goes with one file.** An image that was replaced (restored, copied, made anew) under a log that was left knows nothing of what the log says: it is refused at open, unless it may be
//! overwritten (`resync=full`), and then begins a new log. Without a place given, the log is beside the image's real name, through all links.
//!
//! **Power may fail at any byte.** A header is written to the first place and made durable, then to the second: at least one is whole, and the newest whole one counts. One damaged later leaves its
//! twin. Bitmap sectors are written in place: one that is not whole counts as having all its bits set, which costs copying at most 3.9 GiB more, and is safe whatever damaged it. A log is created
//! without its name, or under another, and renamed when it is whole and first needed.

pub mod file;
pub mod format;
pub mod marks;

pub use file::LogFile;
pub use format::{Header, ImageFile, SECTOR_REGIONS};
pub use marks::{Marks, SectorWrite};
