//! Batches that are made ahead of the updates that need them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::corpus::CorpusError;

/// Makes the batch of a step.
pub(crate) type MakeBatch<B> = Arc<dyn Fn(u64) -> Result<B, CorpusError> + Send + Sync>;

/// The batches of consecutive steps, made on threads. Thread number `i` of `n` makes every `n`-th batch from the
/// `i`-th on, and begins the next only when its last one was taken: at most `n` batches are ready or
/// being made, and their order does not depend on which thread is faster.
pub(crate) struct Batches<B> {
    threads: Vec<Maker<B>>,
    /// The thread whose batch is next.
    turn: usize,
}

/// A thread that makes batches. Dropping its queue ends the thread, so the queue is dropped first.
struct Maker<B> {
    queue: Option<Receiver<Result<B, CorpusError>>>,
    thread: Option<JoinHandle<()>>,
}

impl<B: Send + 'static> Batches<B> {
    /// Starts `threads` threads that make the batches from step `first` on.
    pub(crate) fn start(threads: usize, first: u64, make: &MakeBatch<B>) -> Self {
        let maker = |i: usize| {
            // The queue has no room: a batch waits in its thread until it is taken.
            let (give, queue) = sync_channel(0);
            let make = make.clone();
            let run = move || {
                let mut steps = (first + i as u64..).step_by(threads);
                while steps.next().is_some_and(|step| give.send(make(step)).is_ok()) {}
            };
            Maker { queue: Some(queue), thread: Some(std::thread::spawn(run)) }
        };
        Self { threads: (0..threads).map(maker).collect(), turn: 0 }
    }

    /// The next step's batch; waits until it is made.
    pub(crate) fn next(&mut self) -> Result<B, CorpusError> {
        let turn = self.turn;
        self.turn = (turn + 1) % self.threads.len();
        let maker = &mut self.threads[turn];
        let queue = maker.queue.as_ref().expect("queues stay until batches are dropped");
        match wait(|time| match queue.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => None,
            taken => Some(taken),
        }) {
            Ok(batch) => batch,
            // Only a panic ends the thread this early.
            Err(_) => {
                let thread = maker.thread.take().expect("a thread ends once");
                let panic = thread.join().expect_err("only a panic ends the thread");
                std::panic::resume_unwind(panic)
            }
        }
    }
}

impl<B> Drop for Maker<B> {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            wait(|time| {
                if thread.is_finished() {
                    return Some(());
                }
                std::thread::sleep(time);
                None
            });
            // A panic while making a batch that nobody takes does not matter.
            let _ = thread.join();
        }
    }
}

/// How long a thread sleeps at most while it waits and its pool has no work.
const IDLE: Duration = Duration::from_millis(1);

/// Waits until `poll`, which may sleep for as long as it is told, returns something.
///
/// The thread that makes a batch divides its work among the threads of a pool. One of them may be the thread that waits
/// here, and even the only one. So this thread does such work meanwhile.
fn wait<T>(mut poll: impl FnMut(Duration) -> Option<T>) -> T {
    let mut time = Duration::ZERO;
    loop {
        if let Some(value) = poll(time) {
            return value;
        }
        let has_worked = rayon::yield_now() == Some(rayon::Yield::Executed);
        time = if has_worked { Duration::ZERO } else { IDLE };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The thread that waits is the only one of the pool that makes the batches.
    #[test]
    fn one_thread_waits_and_works() {
        let pool = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
        let make: MakeBatch<u64> = {
            let pool = pool.clone();
            Arc::new(move |step| Ok(pool.install(|| step)))
        };
        let (give, made) = std::sync::mpsc::channel();
        pool.spawn(move || {
            let mut batches = Batches::start(2, 0, &make);
            let made = [(); 5].map(|()| batches.next().unwrap());
            // The threads are still making batches.
            drop(batches);
            give.send(made).unwrap();
        });
        let made = made.recv_timeout(Duration::from_secs(60)).expect("nothing waits for ever");
        assert_eq!(made, [0, 1, 2, 3, 4]);
    }

    fn batches(threads: usize, make: fn(u64) -> Result<u64, CorpusError>) -> Batches<u64> {
        Batches::start(threads, 5, &(Arc::new(make) as MakeBatch<u64>))
    }

    /// Steps take 0 to 2 ms, so that threads overtake each other.
    #[test]
    fn batches_come_in_the_order_of_their_steps() {
        for threads in [1, 2, 3, 7] {
            let mut batches = batches(threads, |step| {
                std::thread::sleep(std::time::Duration::from_millis(step * 5 % 3));
                Ok(step)
            });
            let made: Vec<_> = (0..30).map(|_| batches.next().unwrap()).collect();
            assert_eq!(made, (5..35).collect::<Vec<_>>(), "{threads} threads");
        }
    }

    #[test]
    fn an_error_comes_at_its_step() {
        let mut batches = batches(2, |step| {
            let torn = || CorpusError::Picture { name: step.to_string(), reason: "torn".into() };
            if step == 7 { Err(torn()) } else { Ok(step) }
        });
        assert_eq!([batches.next().unwrap(), batches.next().unwrap()], [5, 6]);
        assert_eq!(batches.next().unwrap_err().to_string(), "cannot read the picture 7: torn");
        assert_eq!(batches.next().unwrap(), 8);
    }

    #[test]
    #[should_panic(expected = "step 6")]
    fn a_panic_reaches_the_thread_that_trains() {
        let mut batches = batches(2, |step| {
            assert!(step != 6, "step 6");
            Ok(step)
        });
        assert_eq!(batches.next().unwrap(), 5);
        let _ = batches.next();
    }
}
