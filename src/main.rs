//! The binary's edge: nothing but the hand-over to the library.

fn main() {}
