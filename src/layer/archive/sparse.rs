//! Sparse maps: old GNU (in the header and blocks behind it), PAX 0.0 and 0.1 (in the extended header), PAX 1.0 (before
//! the content, decimal numbers a line each, padded to a block).

use super::error::Problem;
use super::header::{BLOCK, size};
use super::index::Extent;
use super::pax::decimal;

/// Bytes of one region in an old GNU map.
const REGION: usize = 24;

/// A sparse file whose map is being collected.
#[derive(Debug)]
pub(super) struct Sparse {
    /// Length with holes.
    pub(super) size: u64,
    map: Vec<(u64, u64)>,
    /// PAX 1.0: what is left of the text, how many numbers it announces, the last offset without its length.
    text: Vec<u8>,
    announced: Option<u64>,
    offset: Option<u64>,
    limit: u32,
}

impl Sparse {
    /// At most `limit` regions.
    pub(super) fn new(size: u64, limit: u32) -> Self {
        Self {
            size,
            map: Vec::new(),
            text: Vec::new(),
            announced: None,
            offset: None,
            limit,
        }
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), Problem> {
        if self.map.len() >= self.limit as usize {
            return Err(Problem::Limit {
                what: "extents of sparse files",
                limit: self.limit.into(),
            });
        }
        self.map.push((offset, length));
        Ok(())
    }

    /// Takes regions of an old GNU map; the first empty field ends them.
    pub(super) fn take_regions(&mut self, regions: &[u8]) -> Result<(), Problem> {
        for region in regions
            .chunks_exact(REGION)
            .take_while(|region| region[0] != 0)
        {
            let number = |field| size(field).ok_or(Problem::Sparse("a malformed number"));
            self.push(number(&region[..12])?, number(&region[12..])?)?;
        }
        Ok(())
    }

    /// Takes a block behind an old GNU header; whether another follows.
    pub(super) fn take_extension(&mut self, block: &[u8; BLOCK]) -> Result<bool, Problem> {
        self.take_regions(&block[..21 * REGION])?;
        Ok(block[21 * REGION] != 0)
    }

    /// Takes the map of PAX 0.x.
    pub(super) fn take_numbers(&mut self, numbers: &[u64]) -> Result<(), Problem> {
        if !numbers.len().is_multiple_of(2) {
            return Err(Problem::Sparse("an offset without a length"));
        }
        numbers
            .chunks_exact(2)
            .try_for_each(|pair| self.push(pair[0], pair[1]))
    }

    /// Takes a block of a PAX 1.0 map; whether another follows.
    pub(super) fn take_text(&mut self, block: &[u8; BLOCK]) -> Result<bool, Problem> {
        let malformed = Problem::Sparse("a malformed number");
        for &byte in block {
            if self.is_complete() {
                break;
            }
            if byte != b'\n' {
                if self.text.len() > 20 {
                    return Err(malformed);
                }
                self.text.push(byte);
                continue;
            }
            let number = decimal(&self.text).ok_or_else(|| malformed.clone())?;
            self.text.clear();
            match (self.announced, self.offset.take()) {
                (None, _) => self.announced = Some(number),
                (Some(_), None) => self.offset = Some(number),
                (Some(_), Some(offset)) => self.push(offset, number)?,
            }
        }
        Ok(!self.is_complete())
    }

    fn is_complete(&self) -> bool {
        self.announced
            .is_some_and(|count| self.map.len() as u64 >= count)
    }

    /// The extents, the content of `stored` bytes beginning at `tar`.
    pub(super) fn extents(self, tar: u64, stored: u64) -> Result<Vec<Extent>, Problem> {
        let mut extents = Vec::with_capacity(self.map.len());
        let (mut end, mut used) = (0_u64, 0_u64);
        for (offset, length) in self.map {
            let next = offset.checked_add(length).filter(|&next| next <= self.size);
            let next = next.ok_or(Problem::Sparse("a region behind the end"))?;
            if offset < end {
                return Err(Problem::Sparse("regions overlap or are out of order"));
            }
            if length > 0 {
                let at = tar.checked_add(used);
                extents.push(Extent {
                    offset,
                    length,
                    tar: at.ok_or(Problem::Sparse("a region behind the end"))?,
                });
            }
            end = next;
            used += length;
        }
        if used != stored {
            return Err(Problem::Sparse("the map is of more or less than is stored"));
        }
        Ok(extents)
    }
}
