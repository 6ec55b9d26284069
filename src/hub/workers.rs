//! Several transfers at a time.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Runs `work` for each item, `workers` at a time, the largest first; ends with the first error.
pub(super) fn each<T: Sync>(
    items: &[T],
    workers: usize,
    size: impl Fn(&T) -> u64,
    work: impl Fn(&T) -> Result<()> + Sync,
) -> Result<()> {
    let mut order: Vec<&T> = items.iter().collect();
    order.sort_by_key(|item| Reverse(size(item)));
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = work(item) {
                        // Nobody begins another one.
                        next.store(order.len(), Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
