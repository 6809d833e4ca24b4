//! The threads that compute the shares of a batch.

use burn::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// A pool of threads for each share that is computed at a time on a CPU.
///
/// A kernel divides its work among the threads of the pool in which it is called. Outside of a pool, its caller wakes a
/// thread and sleeps until that one is done; with small models this takes a tenth of an update. With one pool for all
/// shares, a thread that waits for a part of its share could begin another share, which then delays the first one.
///
/// A GPU gets no pools: it would keep the features of each thread in another part of its memory.
pub(crate) struct ShareThreads {
    pools: Vec<Pool>,
}

impl ShareThreads {
    /// For at most `count` shares at a time, among which the threads of this process are divided.
    pub(crate) fn new(count: usize, device: &Device) -> Self {
        let on_cpu = device.clone().inner() == Device::flex();
        Self { pools: (0..count).map(|_| Pool::new(count, on_cpu)).collect() }
    }

    /// Calls `f` with every item, side by side, and returns the results in their order.
    ///
    /// # Panics
    ///
    /// Panics if there are more items than pools, or where `f` panics.
    pub(crate) fn map<T: Send, R: Send>(&self, items: Vec<T>, f: impl Fn(T) -> R + Sync) -> Vec<R> {
        assert!(items.len() <= self.pools.len(), "more shares at a time than expected");
        let f = &f;
        std::thread::scope(|scope| {
            let mut work = items.into_iter().zip(&self.pools);
            let mine = work.next();
            let threads: Vec<_> =
                work.map(|(item, pool)| scope.spawn(move || pool.run(|| f(item)))).collect();
            let mine = mine.map(|(item, pool)| pool.run(|| f(item)));
            let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            mine.into_iter().chain(threads.into_iter().map(join)).collect()
        })
    }
}

/// Threads of which one calls a function, and the others take parts of its kernels' work.
struct Pool {
    /// `None` on a GPU, or where no thread can be started: the caller's thread does the work.
    threads: Option<ThreadPool>,
}

impl Pool {
    /// One of `count` pools.
    fn new(count: usize, on_cpu: bool) -> Self {
        const STACK: usize = 8 << 20; // bytes, as the main thread usually has
        let threads = rayon::current_num_threads().div_ceil(count);
        let pool = || ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build().ok();
        Self { threads: on_cpu.then(pool).flatten() }
    }

    fn run<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.threads {
            Some(threads) => threads.install(f),
            None => f(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two shares that wait for each other end only if they run at the same time.
    #[test]
    fn shares_run_side_by_side_and_keep_their_order() {
        let barrier = std::sync::Barrier::new(2);
        let threads = ShareThreads::new(2, &Device::flex());
        let wait = |i: usize| {
            barrier.wait();
            10 * i
        };
        assert_eq!(threads.map(vec![0, 1], wait), [0, 10]);
        assert_eq!(threads.map(vec![4], |i| i), [4]);
    }

    #[test]
    fn the_threads_are_divided_among_the_shares() {
        let all = rayon::current_num_threads();
        for count in [1, 2, 3] {
            let threads = ShareThreads::new(count, &Device::flex().autodiff());
            let found = threads.map(vec![(); count], |()| rayon::current_num_threads());
            assert_eq!(found, vec![all.div_ceil(count); count]);
        }
    }
}
