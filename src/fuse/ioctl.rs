//! The one use of ioctl(2) that a filesystem without devices has: file flags.

use fuser::{Errno, INodeNo, ReplyIoctl};

use super::adapter::Adapter;
use super::stats::Timer;
use crate::layer::file_flags::{EXTENDED, FileFlags};
use crate::overlay::Overlay;

/// `FS_IOC_GETFLAGS`, `FS_IOC_SETFLAGS`, `FS_IOC_FSGETXATTR`, `FS_IOC_FSSETXATTR` of linux/fs.h.
const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_EXTENDED: u32 = 0x801c_581f;
const SET_EXTENDED: u32 = 0x401c_5820;

impl Adapter {
    /// Answers the request `command`: ENOTTY, as any file does, if it has nothing to do with flags.
    pub(super) fn control(
        &self,
        timer: Timer,
        ino: INodeNo,
        (command, data): (u32, &[u8]),
        reply: ReplyIoctl,
    ) {
        let given = match (command, data.first_chunk(), data.first_chunk::<EXTENDED>()) {
            (GET_FLAGS | GET_EXTENDED, ..) => None,
            (SET_FLAGS, Some(bits), _) => Some(FileFlags::Plain(u32::from_ne_bytes(*bits))),
            (SET_EXTENDED, _, Some(all)) => Some(FileFlags::Extended(*all)),
            _ => return reply.error(Errno::ENOTTY),
        };
        let may_block = given.is_some() && self.overlay.copies_data(ino.0, false);
        let act = move |overlay: &Overlay| match given {
            Some(flags) => overlay.set_file_flags(ino.0, flags).map(|()| None),
            None => overlay.file_flags(ino.0, command == GET_EXTENDED).map(Some),
        };
        self.answer(timer, may_block, act, move |answer| match answer {
            Ok(Some(FileFlags::Plain(bits))) => reply.ioctl(0, &bits.to_ne_bytes()),
            Ok(Some(FileFlags::Extended(all))) => reply.ioctl(0, &all),
            Ok(None) => reply.ioctl(0, &[]),
            Err(error) => reply.error(error),
        });
    }
}
