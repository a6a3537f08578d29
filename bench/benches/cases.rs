//! Time and allocations of every case: `cargo bench -p bench`.

use bench::cases::CASES;
use divan::{AllocProfiler, Bencher};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

/// Done per sample, so that the clock doesn't count.
const TIMES: u32 = 100;

fn main() {
    divan::main();
}

#[divan::bench(args = CASES.iter().map(|(name, _)| *name))]
fn hundred_times(bencher: Bencher, name: &str) {
    let case = CASES.iter().find(|(known, _)| *known == name);
    let Some((_, make)) = case else { return };
    let mut run = make();
    // Buffers grow to their size first.
    run(TIMES);
    bencher
        .counter(divan::counter::ItemsCount::new(TIMES))
        .bench_local(|| run(TIMES));
}
