//! How long extracting a whole archive takes, and writing and reading the artifact that it becomes.
//!
//! The archive is `$KV_CORRECTNESS_MMLU`, else the canary dataset.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use kv_correctness::dataset::{Limits, extract, read_questions, write_questions};

fn extraction(criterion: &mut Criterion) {
    let path = std::env::var("KV_CORRECTNESS_MMLU")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/data/canary.tar.xz").to_owned());
    let archive = fs_err::read(&path).expect("the archive can be read; name one in KV_CORRECTNESS_MMLU");
    let dataset = extract(archive.as_slice(), &Limits::default()).expect("the archive is sound");
    let mut lines = Vec::new();
    write_questions(&dataset, &mut lines).expect("memory takes every line");

    let mut group = criterion.benchmark_group("dataset");
    group.throughput(Throughput::Bytes(archive.len() as u64));
    group.bench_function("extract", |bencher| {
        bencher.iter(|| extract(black_box(archive.as_slice()), &Limits::default()));
    });
    group.throughput(Throughput::Bytes(lines.len() as u64));
    group.bench_function("write questions", |bencher| {
        bencher.iter(|| write_questions(black_box(&dataset), Vec::with_capacity(lines.len())));
    });
    group.bench_function("read questions", |bencher| {
        bencher.iter(|| read_questions(black_box(lines.as_slice())));
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    extraction(&mut criterion);
    criterion.final_summary();
}
