//! Renderers of the lowered ruleset.
//!
//! [`nft`] writes text, [`code`] the expressions
//! that the kernel evaluates. Both read the same types.

pub mod code;
pub mod nft;
