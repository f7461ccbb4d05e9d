//! The core without a mount: `cargo bench`. Each number is one call into the overlay, as a request makes it.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a benchmark that cannot go on has nothing to tell"
)]

use std::fs;
use std::hint::black_box;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use plyfs::layer::name::Name;
use plyfs::layer::stack::{Durability, Stack, StackConfig, UpperConfig};
use plyfs::overlay::node::ROOT;
use plyfs::overlay::{Options, Overlay};

const LAYERS: [usize; 4] = [1, 8, 128, 500];

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
    criterion.bench_function("copy-up of 4 KiB by a write, volatile", |bencher| {
        let fresh = || {
            let rw = tempfile::tempdir_in(base.path()).unwrap();
            let (upper, work) = (rw.path().join("upper"), rw.path().join("work"));
            fs::create_dir(&upper).unwrap();
            fs::create_dir(&work).unwrap();
            let config = StackConfig {
                upper: Some(UpperConfig { upper, work }),
                ..config.clone()
            };
            let overlay = open(&config);
            let dir = lookup(&overlay, ROOT, "d").unwrap();
            let file = lookup(&overlay, dir, "f0-3").unwrap();
            (rw, overlay, file)
        };
        let write = |(rw, overlay, file): (tempfile::TempDir, Overlay, u64)| {
            assert_eq!(overlay.write(file, 0, b"x", false), Ok(1));
            (rw, overlay)
        };
        bencher.iter_batched(fresh, write, BatchSize::PerIteration);
    });
}

criterion_group!(core, by_layers, copy_up);
criterion_main!(core);
