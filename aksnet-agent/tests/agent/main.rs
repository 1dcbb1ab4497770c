//! The real binary on an emulated node: one file per question that an operator would ask of it. Without root
//! each test says why it is skipped.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

// What the tests stand on.
mod life;

mod scrape;

mod truth;

mod line;

mod quiet;

mod cluster;

mod browser;

// The questions.
mod finds;

mod counts;

mod classes;

mod growth;

mod pods;

mod ends;

mod top;

mod refusals;

mod scale;

mod logs;

mod ways;

mod names;

mod bill;

mod what_it_is;

mod denied;

mod gap;

mod hostile;

mod mishaps;

mod doctor;
mod page;
mod prometheus;
mod records;

mod screen;

mod faults;
mod kernels;
mod strangers;
