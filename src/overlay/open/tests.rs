//! Opening a lower file while it is copied up.

use std::fs;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::layer::name::Name;
use crate::layer::stack::{Durability, Stack, StackConfig, UpperConfig};
use crate::overlay::Options;
use crate::overlay::node::ROOT;

#[test]
fn a_file_opened_while_it_is_copied_up_is_not_read_after_that() {
    const ROUNDS: u32 = 600;
    let base = tempfile::tempdir().unwrap();
    for dir in ["lower", "upper", "work"] {
        fs::create_dir(base.path().join(dir)).unwrap();
    }
    for round in 0..ROUNDS {
        fs::write(base.path().join(format!("lower/f{round}")), "old").unwrap();
    }
    let config = StackConfig {
        lowers: vec![base.path().join("lower").into()],
        upper: Some(UpperConfig {
            upper: base.path().join("upper"),
            work: base.path().join("work"),
        }),
        durability: Durability::Volatile,
        ..StackConfig::default()
    };
    let overlay = Overlay::new(Stack::open(&config).unwrap(), Options::default()).unwrap();
    let read = |ino| {
        let mut buffer = [0; 8];
        let length = overlay.read(ino, 0, &mut buffer).unwrap();
        buffer[..length].to_vec()
    };
    for round in 0..ROUNDS {
        let name = format!("f{round}");
        let name = Name::from_bytes(name.as_bytes()).unwrap();
        let ino = overlay.lookup(ROOT, name).unwrap().unwrap().ino;
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                // At another moment of the copy-up each time.
                let begin = Instant::now();
                while begin.elapsed() < Duration::from_micros(u64::from(round % 300)) {}
                let seen = read(ino);
                assert!(seen == b"old" || seen == b"new", "{seen:?}");
            });
            start.wait();
            overlay.write(ino, 0, b"new", false).unwrap();
        });
        assert_eq!(read(ino), b"new", "round {round} reads the lower for ever");
    }
}
