//! The core without a mount: `cargo bench`. Each number is one call into the overlay, as a request makes it.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that cannot go on has nothing to tell"
)]

use std::fs;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use plyfs::layer::archive::{self, Indexer, Limits};
use plyfs::layer::name::Name;
use plyfs::layer::stack::{Durability, Stack, StackConfig, UpperConfig};
use plyfs::overlay::attr::Changes;
use plyfs::overlay::node::ROOT;
use plyfs::overlay::{Caller, Options, Overlay};

const LAYERS: [usize; 4] = [1, 8, 128, 500];
const ROOT_USER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// `count` layers that share a directory `d`; each adds 20 files of its own to it.
fn make_layers(base: &Path, count: usize) -> StackConfig {
    let lowers = (0..count).map(|layer| {
        let root = base.join(format!("l{layer}"));
        fs::create_dir_all(root.join("d")).unwrap();
        for file in 0..20 {
            fs::write(root.join(format!("d/f{layer}-{file}")), [7; 4096]).unwrap();
        }
        root.into()
    });
    StackConfig {
        lowers: lowers.collect(),
        ..StackConfig::default()
    }
}

fn open(config: &StackConfig) -> Overlay {
    Overlay::new(Stack::open(config).unwrap(), Options::default()).unwrap()
}

fn lookup(overlay: &Overlay, parent: u64, name: &str) -> Option<u64> {
    let name = Name::from_bytes(name.as_bytes()).unwrap();
    overlay.lookup(parent, name).unwrap().map(|found| found.ino)
}

fn by_layers(criterion: &mut Criterion) {
    for count in LAYERS {
        let base = tempfile::tempdir().unwrap();
        let config = make_layers(base.path(), count);
        let bottom = format!("f{}-7", count - 1);
        let mut group = criterion.benchmark_group("layers");
        let warm = open(&config);
        let dir = lookup(&warm, ROOT, "d").unwrap();
        assert!(lookup(&warm, dir, &bottom).is_some());
        group.bench_function(BenchmarkId::new("lookup hit, known", count), |bencher| {
            bencher.iter(|| lookup(black_box(&warm), dir, &bottom));
        });
        group.bench_function(BenchmarkId::new("lookup miss", count), |bencher| {
            bencher.iter(|| lookup(black_box(&warm), dir, "missing"));
        });
        group.bench_function(
            BenchmarkId::new("first lookup: index build", count),
            |bencher| {
                let fresh = || {
                    let overlay = open(&config);
                    let dir = lookup(&overlay, ROOT, "d").unwrap();
                    (overlay, dir)
                };
                let first = |(overlay, dir): (Overlay, u64)| {
                    assert!(lookup(&overlay, dir, &bottom).is_some());
                    overlay
                };
                bencher.iter_batched(fresh, first, BatchSize::PerIteration);
            },
        );
        group.bench_function(BenchmarkId::new("listing, known", count), |bencher| {
            bencher.iter(|| {
                let mut names = 0;
                warm.read_dir(dir, 0, false, |_| {
                    names += 1;
                    false
                })
                .unwrap();
                names
            });
        });
    }
}

fn copy_up(criterion: &mut Criterion) {
    let base = tempfile::tempdir().unwrap();
    let mut config = make_layers(base.path(), 1);
    config.durability = Durability::Volatile;
    let fresh = || {
        let rw = tempfile::tempdir_in(base.path()).unwrap();
        let (upper, work) = (rw.path().join("upper"), rw.path().join("work"));
        fs::create_dir(&upper).unwrap();
        fs::create_dir(&work).unwrap();
        let config = StackConfig {
            upper: Some(UpperConfig { upper, work }),
            ..config.clone()
        };
        let options = Options {
            metacopy: true,
            ..Options::default()
        };
        let overlay = Overlay::new(Stack::open(&config).unwrap(), options).unwrap();
        let dir = lookup(&overlay, ROOT, "d").unwrap();
        let file = lookup(&overlay, dir, "f0-3").unwrap();
        // The directory is in the upper.
        let first = lookup(&overlay, dir, "f0-1").unwrap();
        assert_eq!(overlay.write(first, 0, b"x", false), Ok(1));
        (rw, overlay, file)
    };
    criterion.bench_function("copy-up of 4 KiB by a write, volatile", |bencher| {
        let write = |(rw, overlay, file): (tempfile::TempDir, Overlay, u64)| {
            assert_eq!(overlay.write(file, 0, b"x", false), Ok(1));
            (rw, overlay)
        };
        bencher.iter_batched(fresh, write, BatchSize::PerIteration);
    });
    criterion.bench_function("copy-up without data by chmod", |bencher| {
        let private = Changes {
            mode: Some(0o600),
            ..Changes::default()
        };
        let chmod = |(rw, overlay, file): (tempfile::TempDir, Overlay, u64)| {
            let attr = overlay.set_attr(file, &private, &ROOT_USER);
            assert_eq!(attr.unwrap().mode, 0o600);
            (rw, overlay)
        };
        bencher.iter_batched(fresh, chmod, BatchSize::PerIteration);
    });
}

/// A tar of `count` empty files in directories of 100.
fn make_tar(count: usize) -> Vec<u8> {
    let mut tar = Vec::new();
    for file in 0..count {
        let mut block = [0; 512];
        let name = format!("usr/lib/dir-{}/file-{file}.txt", file / 100);
        block[..name.len()].copy_from_slice(name.as_bytes());
        for (at, field) in [
            (100, "0000644"),
            (108, "0000000"),
            (116, "0000000"),
            (124, "00000000000"),
            (136, "14000000000"),
            (148, "        "),
            (156, "0"),
            (257, "ustar\x0000"),
        ] {
            block[at..at + field.len()].copy_from_slice(field.as_bytes());
        }
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&block);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

fn archive_index(criterion: &mut Criterion) {
    let tar = make_tar(100_000);
    let build = || {
        let mut indexer = Indexer::new(Limits::default());
        indexer.write_all(&tar).unwrap();
        indexer.finish().unwrap()
    };
    let mut group = criterion.benchmark_group("archive index");
    group.sample_size(10);
    group.bench_function("build, 100000 files", |bencher| bencher.iter(build));
    let index = build();
    let walk = |path: &str| {
        path.split('/').try_fold(archive::ROOT, |dir, name| {
            let dir = index.inode(dir).unwrap();
            index.find(&dir, name.as_bytes()).unwrap()?.inode
        })
    };
    let dir = walk("usr/lib/dir-500").unwrap();
    group.bench_function("lookup in a directory of 1000", |bencher| {
        let parent = index.inode(walk("usr/lib").unwrap()).unwrap();
        bencher.iter(|| {
            index
                .find(black_box(&parent), b"dir-777")
                .unwrap()
                .is_some()
        });
    });
    group.bench_function("listing of 100", |bencher| {
        let dir = index.inode(dir).unwrap();
        bencher.iter(|| index.list(black_box(&dir)).unwrap().flatten().count());
    });
}

criterion_group!(core, by_layers, copy_up, archive_index);
criterion_main!(core);
