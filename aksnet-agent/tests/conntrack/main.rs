//! The conntrack mirror on real kernels, judged by what `conntrack -L` and the kernel's own files say.

#![expect(
    unreachable_pub,
    reason = "one test binary: `pub` says what another module uses"
)]

mod follow;

mod mirror;

mod dialled;

mod clash;

mod full;

mod poor;
