//! Where things lie in guest memory: socket buffers, heap, the ledger and the DIRTY region, planned from the PVH memory map.
//!
//! Pure arithmetic: nothing here touches memory. From the image's end upwards in the RAM range that holds it: socket buffers, heap,
//! ledger, then the DIRTY region, which goes on through all later RAM ranges.

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Most RAM ranges of the map that are used; PVH maps have two or three.
pub const MOST_RANGES: usize = 8;
/// Memory above this is left alone: page tables are reserved up to here.
pub const MOST_ADDRESS: u64 = 64 << 30;
/// Most connections: 64 are promised, as many again may still be closing when a client replaces all of its own at once, and a few more.
pub const MOST_CONNECTIONS: u64 = 144;
/// Receive buffer of a connection: a value of the largest size in flight.
pub const RECEIVE_BUFFER: u64 = 64 * 1024;
/// Send buffer of a connection: two of them, so that a pipeline of large replies does not stall.
pub const SEND_BUFFER: u64 = 128 * 1024;
/// The heap takes half of the memory, but not more than this; the rest is for dirtying.
const MOST_HEAP: u64 = 512 << 20;

/// A stretch of memory, page-aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

impl Range {
    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn pages(&self) -> u64 {
        self.len() / PAGE
    }
}

/// The plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Connections whose buffers fit.
    pub connections: u64,
    /// Socket buffers.
    pub sockets: Range,
    /// The heap.
    pub heap: Range,
    /// Four bytes for each page of the region.
    pub ledger: Range,
    /// The DIRTY region in order; empty ranges end it.
    pub region: [Range; MOST_RANGES],
}

impl Layout {
    /// Plans for RAM ranges in any order; `image_end` lies in one of them. `None` when less than 8 MiB are left above the image.
    #[must_use]
    pub fn plan(ram: &[Range], image_end: u64) -> Option<Layout> {
        let usable = |range: &Range| Range {
            start: range.start.max(image_end).next_multiple_of(PAGE),
            end: range.end.min(MOST_ADDRESS) / PAGE * PAGE,
        };
        let home = ram.iter().find(|range| range.start <= image_end && image_end < range.end).map(usable)?;
        let above = || ram.iter().filter(|range| range.start > image_end).map(usable).filter(|range| !range.is_empty());
        let total = home.len() + above().map(|range| range.len()).sum::<u64>();
        if home.len() < 8 << 20 {
            return None;
        }
        let connections = MOST_CONNECTIONS.min(home.len() / 4 / (RECEIVE_BUFFER + SEND_BUFFER));
        let sockets = Range { start: home.start, end: home.start + connections * (RECEIVE_BUFFER + SEND_BUFFER) };
        let heap_len = (total / 2).min(home.len() / 2).min(MOST_HEAP) / PAGE * PAGE - sockets.len();
        let heap = Range { start: sockets.end, end: sockets.end + heap_len };
        let rest = (total - (heap.end - home.start)) / PAGE;
        let ledger_len = (rest * 4).next_multiple_of(PAGE);
        let ledger = Range { start: heap.end, end: heap.end + ledger_len };
        let mut layout = Layout { connections, sockets, heap, ledger, region: [Range::default(); MOST_RANGES] };
        if ledger.end >= home.end {
            // A ledger for all of it does not fit beside the image: leave the other ranges alone.
            return if ram.len() > 1 { Layout::plan(&[home], home.start) } else { None };
        }
        let ranges = core::iter::once(Range { start: ledger.end, end: home.end }).chain(above());
        for (slot, range) in layout.region.iter_mut().zip(ranges) {
            *slot = range;
        }
        Some(layout)
    }

    /// Pages of the DIRTY region.
    #[must_use]
    pub fn region_pages(&self) -> u64 {
        self.region.iter().map(Range::pages).sum()
    }

    /// Guest physical address of a page of the region; `None` past its end.
    #[must_use]
    pub fn page_address(&self, mut page: u64) -> Option<u64> {
        for range in &self.region {
            if page < range.pages() {
                return Some(range.start + page * PAGE);
            }
            page -= range.pages();
        }
        None
    }
}

#[cfg(test)]
#[path = "tests/layout.rs"]
mod tests;
