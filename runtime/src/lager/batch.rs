//! Writes several log lines with one system call.

use std::cell::RefCell;

use super::Sink;

thread_local! {
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Buffered lines of this thread, all for one sink.
#[derive(Default)]
struct Kept {
    sink: Option<Sink>,
    lines: String,
}

/// Runs `work`, and writes the lines that `work` logs on this thread with one write at the end,
/// even after a panic. For bulk logging: each write is a system call.
pub fn batch_writes<T>(work: impl FnOnce() -> T) -> T {
    let _at_the_end = Guard::begin();
    work()
}

/// Buffers a line if this thread buffers lines for the same sink.
pub(super) fn keep(sink: &Sink, line: &str) -> bool {
    KEPT.with_borrow_mut(|kept| {
        let Some(kept) = kept else { return false };
        if !kept.sink.get_or_insert_with(|| sink.clone()).is(sink) {
            return false;
        }
        kept.lines.push_str(line);
        true
    })
}

struct Guard {
    /// An inner batch writes to the outer one.
    is_outermost: bool,
}

impl Guard {
    fn begin() -> Self {
        let is_outermost = KEPT.with_borrow_mut(|kept| {
            let is_outermost = kept.is_none();
            kept.get_or_insert_default();
            is_outermost
        });
        Self { is_outermost }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.is_outermost
            && let Some(Kept { sink: Some(sink), lines }) = KEPT.take()
        {
            sink.write(&lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The writes, in order.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<String>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_batch_is_one_write_even_after_a_panic() {
        let (writes, others) = (Writes::default(), Writes::default());
        let (sink, other) = (Sink::new(writes.clone()), Sink::new(others.clone()));
        batch_writes(|| {
            sink.write("a\n");
            batch_writes(|| sink.write("b\n"));
            other.write("elsewhere\n");
            assert!(writes.0.lock().unwrap().is_empty());
        });
        let panicked = std::panic::catch_unwind(|| {
            batch_writes(|| {
                sink.write("c\n");
                panic!("in the middle")
            })
        });
        assert!(panicked.is_err());
        sink.write("d\n");
        assert_eq!(*writes.0.lock().unwrap(), ["a\nb\n", "c\n", "d\n"]);
        assert_eq!(*others.0.lock().unwrap(), ["elsewhere\n"]);
    }
}
