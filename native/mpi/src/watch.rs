//! Ends all processes when one cannot go on, because it has panicked or has done nothing for long.

use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{panic, thread};

use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use wuerstchen_cli::say;
use wuerstchen_train::Event;

/// The exit code of a program that panics.
const PANICKED: i32 = 101;
/// The exit code of a job in which a process does nothing.
const STALLED: i32 = 124;

/// How much longer the limit is for a process that waits for others, so that the one that they wait for reports first.
const PATIENCE: Duration = Duration::from_secs(2);

/// Watches what this process has done last.
pub struct Watch {
    begun: Instant,
    /// Milliseconds from the start to the last time that something was done; 0 before anything is watched.
    done: AtomicU64,
    /// Updates done.
    step: AtomicU64,
    /// Whether it waits for other processes.
    waits: AtomicBool,
    ended: AtomicBool,
}

impl Watch {
    /// Watches nothing before the first call of [`Self::waits`].
    pub fn new() -> Self {
        Self {
            begun: Instant::now(),
            done: AtomicU64::new(0),
            step: AtomicU64::new(0),
            waits: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    /// Ends all processes when this one, which messages call `name`, panics. Without this, MPI would be finalized
    /// while the stack unwinds, and wait for the others, which wait for this one.
    pub fn abort_on_panic(self: &Arc<Self>, name: String) {
        let watch = self.clone();
        panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            let text = info.payload_as_str().unwrap_or("without a message");
            let place = info.location().map_or_else(String::new, |place| format!(" at {place}"));
            watch.abort(&name, &format!("panicked{place}: {text}"), PANICKED);
        }));
    }

    /// Ends all processes when this one, which messages call `name`, does nothing for as long as `limit`.
    pub fn begin(self: &Arc<Self>, name: String, limit: Duration) {
        let watch = self.clone();
        let look_every = (limit / 10).clamp(Duration::from_millis(10), Duration::from_secs(1));
        thread::spawn(move || {
            while !watch.ended.load(Ordering::Relaxed) {
                thread::sleep(look_every);
                let done = Duration::from_millis(watch.done.load(Ordering::Relaxed));
                let idle = watch.begun.elapsed().saturating_sub(done);
                let waits = watch.waits.load(Ordering::Relaxed);
                let limit = if waits { limit.saturating_add(PATIENCE) } else { limit };
                if done.is_zero() || idle < limit {
                    continue;
                }
                let doing = if waits { "waiting for the other processes" } else { "computing" };
                let what = format!(
                    "nothing done for {} s (--stall-seconds), while {doing}",
                    idle.as_secs()
                );
                watch.abort(&name, &what, STALLED);
            }
        });
    }

    /// Ends the watch: the work is over, and the rest may take any time.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    /// Takes note of what has been done.
    pub fn hear(&self, event: &Event<'_>) {
        if let Event::Update { metrics, .. } = event {
            self.step.store(metrics.step, Ordering::Relaxed);
        }
        self.mark();
    }

    /// Takes note that this process begins or stops waiting for others.
    pub fn waits(&self, waits: bool) {
        self.waits.store(waits, Ordering::Relaxed);
        self.mark();
    }

    fn mark(&self) {
        self.done.store(self.begun.elapsed().as_millis().max(1) as u64, Ordering::Relaxed);
    }

    fn abort(&self, name: &str, what: &str, code: i32) -> ! {
        let step = self.step.load(Ordering::Relaxed);
        say!(
            "error: {name}, after step {step}: {what}\nall processes end; what is saved is kept, for --resume auto"
        );
        SimpleCommunicator::world().abort(code)
    }
}
