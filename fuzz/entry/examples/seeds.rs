//! Writes the inputs a target starts from: `seeds TARGET DIRECTORY`.

use std::path::Path;

fn main() -> std::io::Result<()> {
    let mut args = std::env::args().skip(1);
    let (Some(target), Some(directory)) = (args.next(), args.next()) else {
        return Err(std::io::Error::other("usage: seeds TARGET DIRECTORY"));
    };
    std::fs::create_dir_all(&directory)?;
    for (n, seed) in fuzz_entry::seeds::of(&target).iter().enumerate() {
        std::fs::write(Path::new(&directory).join(format!("seed-{n}")), seed)?;
    }
    Ok(())
}
