//! Packets into the parser, and rewrites of what it accepts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nft_ftp_helper::core::{Dir, Edit, Packet, Rewrite, Text, mangle};

fuzz_target!(|input: &[u8]| {
    let Some((&[a, b, c], bytes)) = input.split_first_chunk::<3>() else {
        return;
    };
    let Ok(packet) = Packet::parse(bytes) else {
        return;
    };
    let payload = packet.segment(Dir::Orig).payload;
    let rewrite = Rewrite {
        edit: Some(Edit {
            range: usize::from(a)..usize::from(b),
            text: Text::from("192,0,2,1,156,64"),
        }),
        keep: (c > 0).then_some(usize::from(c)),
    };
    let mut out = Vec::new();
    if mangle(&packet, &rewrite, &mut out).is_ok() {
        let end = rewrite.keep.unwrap_or(payload.len());
        let new = Packet::parse(&out).unwrap();
        let text = new.segment(Dir::Orig).payload;
        assert_eq!(text.len(), end - usize::from(b - a) + 16);
        assert_eq!(new.tcp, packet.tcp);
    }
});
