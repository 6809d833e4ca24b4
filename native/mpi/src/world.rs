//! The processes of an MPI job.

use std::env;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};
use mpi::environment::processor_name;
use mpi::topology::SimpleCommunicator;
use mpi::traits::*;
use wuerstchen_train::Peers;
use wuerstchen_train::peers::add;

use crate::watch::Watch;

/// Number of values that go from one process to the next at once: 1 MiB. While one piece is added, the next is on its
/// way.
const PIECE: usize = 1 << 18;

/// How long a process that waits for others sleeps at a time.
const LOOK_EVERY: Duration = Duration::from_micros(50);

/// Most bytes of one broadcast, because MPI counts in 32 bits.
const LARGEST: usize = 1 << 30;

/// Environment variables in which launchers say how many processes they start, the closest launcher first.
const LAUNCHED: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS"];

/// All processes of the job. Its thread is the one that calls MPI.
pub struct World {
    rank: usize,
    size: usize,
    local: usize,
    host: String,
    watch: Arc<Watch>,
}

impl World {
    /// The job's processes; `watch` is told when this one waits for others.
    pub fn new(watch: Arc<Watch>) -> Self {
        let world = SimpleCommunicator::world();
        let [rank, size] = [world.rank(), world.size()].map(|count| count as usize);
        let local = world.split_shared(world.rank()).rank() as usize;
        let host = processor_name().unwrap_or_else(|_| "a machine without a name".to_owned());
        Self { rank, size, local, host, watch }
    }

    /// Number of this process among those on its machine, from 0.
    pub fn local(&self) -> usize {
        self.local
    }

    /// The name of this process in messages.
    pub fn name(&self) -> String {
        format!("rank {} of {} on {}", self.rank, self.size, self.host)
    }

    /// Fails if the launcher has started other processes than the MPI library knows.
    pub fn check_size(&self) -> Result<()> {
        let launched = LAUNCHED.into_iter().find_map(|name| Some((name, env::var(name).ok()?)));
        let Some((name, count)) = launched else { return Ok(()) };
        if count.parse() != Ok(self.size) {
            bail!(
                "expected {count} processes as {name} says, found {}: the launcher (mpirun, srun) must be that of the \
                 MPI library that this program is linked to, and start the program itself",
                self.size
            );
        }
        Ok(())
    }
}

/// Waits until all processes are here. MPI's own waits keep a core busy that another process may need in order to come.
fn meet() -> SimpleCommunicator {
    let world = SimpleCommunicator::world();
    let mut barrier = world.immediate_barrier();
    while let Err(waiting) = barrier.test() {
        barrier = waiting;
        sleep(LOOK_EVERY);
    }
    world
}

impl Peers for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn host(&self) -> String {
        self.host.clone()
    }

    /// Each process adds its addends to the sum of those before it and passes the sum on; the last one sends it to all.
    fn sum(&self, addends: Vec<Vec<f32>>) -> Vec<f32> {
        self.watch.waits(true);
        let world = meet();
        let neighbour = |rank: usize| world.process_at_rank(rank as i32);
        let mut addends = addends.into_iter();
        let mut sum = addends.next().unwrap_or_default();
        let others: Vec<_> = addends.collect();
        let mut before = vec![0.0; if self.rank > 0 { PIECE.min(sum.len()) } else { 0 }];
        for start in (0..sum.len()).step_by(PIECE) {
            let end = sum.len().min(start + PIECE);
            let piece = &mut sum[start..end];
            if self.rank > 0 {
                let before = &mut before[..piece.len()];
                neighbour(self.rank - 1).receive_into(before);
                add(before, piece);
                piece.copy_from_slice(before);
            }
            others.iter().for_each(|other| add(piece, &other[start..end]));
            if self.rank + 1 < self.size {
                neighbour(self.rank + 1).send(piece);
            }
        }
        let last = neighbour(self.size - 1);
        sum.chunks_mut(LARGEST / size_of::<f32>()).for_each(|part| last.broadcast_into(part));
        self.watch.waits(false);
        sum
    }

    fn broadcast(&self, from: usize, bytes: &mut Vec<u8>) {
        self.watch.waits(true);
        let world = meet();
        let root = world.process_at_rank(from as i32);
        let mut length = bytes.len() as u64;
        root.broadcast_into(&mut length);
        bytes.resize(length as usize, 0);
        bytes.chunks_mut(LARGEST).for_each(|part| root.broadcast_into(part));
        self.watch.waits(false);
    }
}
