//! `overlay.origin`: which lower object an upper one was copied up from.
//!
//! The kernel's format (`struct ovl_fb`, fs/overlayfs/overlayfs.h), so that either can read the other's:
//!
//! ```text
//! u8 version = 0   u8 magic = 0xfb   u8 length of all   u8 flags   u8 type   u8 uuid[16]   fid...
//! ```
//!
//! `type` and `fid` are the filesystem's file handle, `uuid` its UUID. Decoding a handle needs
//! `CAP_DAC_READ_SEARCH`, so the inode number is read out of the layouts of the common filesystems instead.

use rustix::io::{Errno, Result};

use super::at::At;
use super::name::NAME_MAX;
use super::sys::RawHandle;

const MAGIC: u8 = 0xfb;
const HEADER: usize = 21;
/// The writer's byte order, which the reader must share (`OVL_FH_FLAG_BIG_ENDIAN`).
const FLAG_BIG_ENDIAN: u8 = 1;
const FLAG_ANY_ENDIAN: u8 = 2;
const BYTE_ORDER: u8 = if cfg!(target_endian = "big") {
    FLAG_BIG_ENDIAN
} else {
    0
};

/// `FILEID_INO64_GEN`.
const INO64: u8 = 0x81;
/// Magic number of tmpfs, whose handles lead with the generation.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Whether an origin is in the kernel's format: empty, or a handle that tells its own length.
pub fn is_well_formed(origin: &[u8]) -> bool {
    let header = [0, MAGIC];
    origin.is_empty()
        || (origin.len() >= HEADER
            && origin.starts_with(&header)
            && usize::from(origin[2]) == origin.len())
}

/// What is needed to write and read handles of one filesystem.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HandleSpace {
    /// The filesystem's UUID, zero if it has none.
    pub uuid: [u8; 16],
    /// Its `f_type`.
    pub fs_type: u64,
}

impl HandleSpace {
    /// The handle of `at` in the kernel's format; EOPNOTSUPP where the filesystem has no handles.
    pub fn encode(&self, at: At<'_>) -> Result<Vec<u8>> {
        let RawHandle { kind, bytes } = at.file_handle()?;
        let length = u8::try_from(HEADER + bytes.len()).map_err(|_| Errno::OVERFLOW)?;
        let kind = u8::try_from(kind).map_err(|_| Errno::OPNOTSUPP)?;
        Ok(self.assemble(length, kind, &bytes))
    }

    /// The handle of an inode that has nothing but a number: one of an archive.
    pub fn encode_number(&self, ino: u64) -> Vec<u8> {
        const LENGTH: u8 = 29;
        self.assemble(LENGTH, INO64, &ino.to_ne_bytes())
    }

    fn assemble(&self, length: u8, kind: u8, fid: &[u8]) -> Vec<u8> {
        let mut handle = vec![0, MAGIC, length, BYTE_ORDER, kind];
        handle.extend_from_slice(&self.uuid);
        handle.extend_from_slice(fid);
        handle
    }

    /// Inode number in an origin of this filesystem; `None` if it is of another one or of an unknown layout.
    pub fn decode(&self, origin: &[u8]) -> Option<u64> {
        let (header, fid) = origin.split_at_checked(HEADER)?;
        let same_order = header[3] & FLAG_ANY_ENDIAN != 0 || header[3] & 1 == BYTE_ORDER;
        let valid = header[0] == 0
            && header[1] == MAGIC
            && usize::from(header[2]) == origin.len()
            && header[5..] == self.uuid
            && same_order;
        if !valid {
            return None;
        }
        let word = |at: usize| Some(u32::from_ne_bytes(fid.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| Some(u64::from_ne_bytes(fid.get(at..at + 8)?.try_into().ok()?));
        match header[4] {
            // tmpfs: generation, low and high half of the number.
            1 if self.fs_type == TMPFS_MAGIC => {
                Some(u64::from(word(4)?) | (u64::from(word(8)?) << 32))
            }
            // FILEID_INO32_GEN: ext4, squashfs, xfs with small numbers.
            1 => word(0).map(u64::from),
            // FILEID_INO64_GEN (xfs, archives), FILEID_BTRFS_WITHOUT_PARENT.
            INO64 | 0x4d => long(0),
            _ => None,
        }
    }
}

const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";

/// Name of the index entry of the inode with this origin, as the kernel writes it: lower-case hex. For an origin too
/// long for that (handles of up to 128 bytes, on network filesystems), five bits a digit, which always fit.
pub fn index_name(origin: &[u8]) -> Vec<u8> {
    let width = if origin.len() * 2 <= NAME_MAX { 4 } else { 5 };
    let bit = |index: usize| {
        let byte = origin.get(index / 8).copied().unwrap_or_default();
        usize::from(byte >> (7 - index % 8) & 1)
    };
    (0..origin.len() * 8)
        .step_by(width)
        .map(|start| DIGITS[(start..start + width).fold(0, |digit, index| digit << 1 | bit(index))])
        .collect()
}

/// The origin that [`index_name`] made `name` of; `None` if it is the name of something else.
pub fn origin_of_index_name(name: &[u8]) -> Option<Vec<u8>> {
    let read = |width: usize| {
        let (mut origin, mut bits, mut held) = (Vec::new(), 0_u32, 0);
        for byte in name {
            let digit = DIGITS.iter().take(1 << width).position(|it| it == byte)?;
            bits = bits << width | u32::try_from(digit).ok()?;
            held += width;
            if held >= 8 {
                held -= 8;
                origin.push((bits >> held & 0xff) as u8);
            }
        }
        let valid = !origin.is_empty() && is_well_formed(&origin);
        (valid && index_name(&origin) == name).then_some(origin)
    };
    read(4).or_else(|| read(5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_origin_of_a_bare_number_tells_it() {
        let space = HandleSpace {
            uuid: [7; 16],
            fs_type: 1,
        };
        let origin = space.encode_number(1 << 40);
        assert_eq!(space.decode(&origin), Some(1 << 40));
    }

    #[test]
    fn the_name_of_an_index_entry_tells_the_origin() {
        let space = HandleSpace {
            uuid: [0xa7; 16],
            fs_type: 1,
        };
        for bytes in [1, 8, 106, 107, 128] {
            let fid: Vec<u8> = (0..bytes).collect();
            let origin = space.assemble(u8::try_from(HEADER).unwrap() + bytes, 1, &fid);
            let name = index_name(&origin);
            assert_eq!(origin_of_index_name(&name), Some(origin), "{bytes}");
        }
        for other in ["", "00", "00fb", "work", "00FB1600810000"] {
            assert_eq!(origin_of_index_name(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn an_index_entry_has_the_kernels_name_or_a_shorter_one_that_is_as_unique() {
        assert_eq!(index_name(&[0x00, 0xfb, 0x1d]), b"00fb1d");
        let longest = index_name(&[0xff; HEADER + 128]);
        assert!(
            longest.len() <= NAME_MAX && longest.ends_with(b"vvvo"),
            "{longest:?}"
        );
        let mut other = [0xff; HEADER + 128];
        other[HEADER + 127] = 0xfe;
        assert_ne!(index_name(&other), longest);
    }

    #[test]
    fn an_origin_tells_the_inode_number() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "x").unwrap();
        let flags = rustix::fs::OFlags::DIRECTORY;
        let fd = rustix::fs::open(dir.path(), flags, rustix::fs::Mode::empty()).unwrap();
        let name = super::super::name::Name::from_bytes(b"f").unwrap();
        let at = At::Entry(std::os::fd::AsFd::as_fd(&fd), name);
        let fs_type = u64::try_from(rustix::fs::fstatfs(&fd).unwrap().f_type).unwrap();
        let space = HandleSpace {
            uuid: [7; 16],
            fs_type,
        };
        let origin = space.encode(at).unwrap();
        assert_eq!(space.decode(&origin), Some(at.stat().unwrap().ino));
        let other = HandleSpace {
            uuid: [8; 16],
            fs_type,
        };
        assert_eq!(other.decode(&origin), None);
        assert_eq!(space.decode(&origin[..20]), None);
    }
}
