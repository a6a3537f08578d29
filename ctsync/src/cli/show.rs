//! `show`: entries of the caches and of the kernel.

use super::{at, fail_on_error};
use crate::render::{self, Select, Selector};
use crate::run::answer::{Ask, Page};
use anyhow::Result;
use daemon::Client;
use serde_json::Value;
use std::io::Write;

pub(super) fn show(client: &mut Client, mut page: Page) -> Result<bool> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    loop {
        let answer = client.request(&Ask::Show(page.clone()))?;
        fail_on_error(&answer)?;
        for entry in at(&answer, "entries").as_array().into_iter().flatten() {
            match entry {
                Value::String(line) => writeln!(out, "{line}")?,
                object => writeln!(out, "{object}")?,
            }
        }
        match serde_json::from_value(at(&answer, "next").clone()) {
            Ok(Some(next)) => page.from = next,
            _ => break,
        }
    }
    out.flush()?;
    Ok(true)
}

pub(super) fn show_kernel(expectations: bool, json: bool, select: Select) -> Result<bool> {
    use crate::kernel::table;
    use crate::record::Record;
    use netfilter::{Socket, expect};
    let selector = Selector::new(select).map_err(anyhow::Error::msg)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut written = Ok(());
    let mut print = |record: &Record, timeout| {
        if written.is_ok() && selector.matches(record) {
            written = if json {
                writeln!(out, "{}", render::json(record, timeout))
            } else {
                writeln!(out, "{}", render::line(record, timeout))
            };
        }
    };
    let mut socket = Socket::open()?;
    if expectations {
        socket.exchange(
            "dumping expectations",
            |buf, seq| expect::dump(buf, None, seq),
            |m| {
                if let Ok(Some(e)) = expect::Event::decode(m) {
                    print(&Record::Expect(e.expectation), e.expectation.timeout);
                }
            },
        )?;
    } else {
        // Told at the end: to keep a million lines until then takes too much.
        table::dump(&mut socket, |flow| {
            print(&Record::Flow(*flow), flow.timeout)
        })?;
    }
    written?;
    out.flush()?;
    Ok(true)
}
