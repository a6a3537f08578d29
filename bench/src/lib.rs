//! Small pieces of the programs' hot paths, for divan (time, allocations) and
//! callgrind (instructions).

pub mod cases;
