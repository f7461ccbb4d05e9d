//! Two threads at one stream of bytes: one reads and unpacks, the other takes what comes.

use std::io::{self, Read};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Bytes in one buffer.
const BUFFER: usize = 256 << 10;
/// Buffers between the threads.
const BUFFERS: usize = 4;

/// Where the reading thread puts what it reads.
pub(super) struct Inlet {
    empty: Receiver<Vec<u8>>,
    full: SyncSender<Vec<u8>>,
}

/// Runs `read` in a thread of its own, and here `take` with each piece that it puts in. Ends when `read` ends, or when
/// `take` fails: returns either's error.
pub(super) fn pump<E>(
    read: impl FnOnce(&Inlet) -> Result<(), E> + Send,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E>
where
    E: Send,
{
    let (give_back, empty) = sync_channel(BUFFERS);
    let (full, filled) = sync_channel::<Vec<u8>>(BUFFERS);
    for _ in 0..BUFFERS {
        // There is room for all, and the receiver is here.
        _ = give_back.send(vec![0; BUFFER]);
    }
    thread::scope(|scope| {
        let reader = scope.spawn(move || read(&Inlet { empty, full }));
        let taken = filled.into_iter().try_for_each(|buffer| {
            take(&buffer)?;
            // The reader may have ended.
            _ = give_back.send(buffer);
            Ok(())
        });
        drop(give_back);
        let read = reader.join().unwrap_or_else(|panic| resume_unwind(panic));
        taken.and(read)
    })
}

impl Inlet {
    /// Puts all of `from` in; stops early if it is not taken any more.
    pub(super) fn put_all(&self, from: &mut dyn Read) -> io::Result<()> {
        while let Ok(mut buffer) = self.empty.recv() {
            buffer.resize(BUFFER, 0);
            let length = fill(from, &mut buffer)?;
            buffer.truncate(length);
            if length == 0 || self.full.send(buffer).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Reads until `buffer` is full or there is no more.
fn fill(from: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_taken_in_order() {
        let bytes: Vec<u8> = (0..3 * BUFFER + 7).map(|n| n.to_le_bytes()[0]).collect();
        let mut taken = Vec::new();
        let read = |inlet: &Inlet| inlet.put_all(&mut &bytes[..]);
        pump(read, |piece| {
            taken.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        assert!(taken == bytes);
    }

    #[test]
    fn an_error_of_either_side_ends_both() {
        let endless = |inlet: &Inlet| inlet.put_all(&mut io::repeat(1));
        let error = pump(endless, |_| Err(io::Error::other("full"))).unwrap_err();
        assert_eq!(error.to_string(), "full");
        let broken = |inlet: &Inlet| {
            inlet.put_all(&mut io::repeat(1).take(3 * BUFFER as u64))?;
            Err(io::Error::other("torn"))
        };
        let mut taken = 0;
        let error = pump(broken, |piece| {
            taken += piece.len();
            Ok(())
        });
        assert_eq!(error.unwrap_err().to_string(), "torn");
        assert_eq!(taken, 3 * BUFFER);
    }
}
