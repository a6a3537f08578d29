//! Renderers of the lowered ruleset.
//!
//! [`nft`] writes text, [`json`] libnftables JSON, [`code`] the expressions
//! that the kernel evaluates. All three read the same types.

pub mod code;
pub mod json;
pub mod nft;
