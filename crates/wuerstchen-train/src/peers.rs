//! The processes that train one model together.

/// The processes that train one model together: each computes its shares of every batch, and all do the same update.
///
/// All but [`rank`](Self::rank), [`size`](Self::size) and [`host`](Self::host) are calls that every process makes, in
/// the same order, and that wait for the others.
pub trait Peers: Send + Sync {
    /// The number of this process, from 0. Rank 0 keeps the run's files.
    fn rank(&self) -> usize;

    /// The number of processes, at least 1.
    fn size(&self) -> usize;

    /// The name of this process's machine, for people.
    fn host(&self) -> String;

    /// The sum of the addends of all ranks, each of the same length. Rank 0's addends are added in their order, then
    /// those of rank 1, and so on, so that the sum does not depend on how many addends each rank has, not even in its
    /// last bit.
    fn sum(&self, addends: Vec<Vec<f32>>) -> Vec<f32>;

    /// Gives the bytes of rank `from` to all.
    fn broadcast(&self, from: usize, bytes: &mut Vec<u8>);
}

/// A process that trains by itself.
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn host(&self) -> String {
        "this machine".to_owned()
    }

    fn sum(&self, addends: Vec<Vec<f32>>) -> Vec<f32> {
        let mut addends = addends.into_iter();
        let mut sum = addends.next().unwrap_or_default();
        addends.for_each(|addend| add(&mut sum, &addend));
        sum
    }

    fn broadcast(&self, _from: usize, _bytes: &mut Vec<u8>) {}
}

/// Adds values to others.
///
/// # Panics
///
/// Panics if the lengths differ.
pub fn add(sum: &mut [f32], values: &[f32]) {
    assert_eq!(sum.len(), values.len(), "the addends of a sum have one length");
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

/// One rank has failed, which ends all of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} of {size} on {host}: {reason}")]
pub struct Failure {
    /// Which rank.
    pub rank: usize,
    /// The number of processes.
    pub size: usize,
    /// Its machine.
    pub host: String,
    /// What has failed.
    pub reason: String,
}

/// The states that ranks exchange in [`agree`], as numbers of a sum in which every rank has a place of its own.
const GOES_ON: f32 = 0.0;
const WISHES_TO_STOP: f32 = 1.0;
const HAS_FAILED: f32 = 2.0;

/// Tells all ranks whether this one wishes to stop, or why it has failed; returns whether any rank wishes to stop.
///
/// # Errors
///
/// A rank has failed. If several have, the error is that of the first one.
pub fn agree(peers: &dyn Peers, own: Result<bool, String>) -> Result<bool, Failure> {
    let mut words = vec![GOES_ON; peers.size()];
    words[peers.rank()] = match &own {
        Ok(false) => GOES_ON,
        Ok(true) => WISHES_TO_STOP,
        Err(_) => HAS_FAILED,
    };
    let words = peers.sum(vec![words]);
    let Some(rank) = words.iter().position(|&word| word == HAS_FAILED) else {
        return Ok(words.contains(&WISHES_TO_STOP));
    };
    let mut told = format!("{}\n{}", peers.host(), own.err().unwrap_or_default()).into_bytes();
    peers.broadcast(rank, &mut told);
    let told = String::from_utf8_lossy(&told);
    let (host, reason) = told.split_once('\n').unwrap_or_default();
    let (host, reason) = (host.to_owned(), reason.to_owned());
    Err(Failure { rank, size: peers.size(), host, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_agrees_with_itself() {
        assert_eq!(agree(&Alone, Ok(false)), Ok(false));
        assert_eq!(agree(&Alone, Ok(true)), Ok(true));
        let failure = agree(&Alone, Err("torn\nin two".to_owned())).unwrap_err();
        assert_eq!(failure.to_string(), "rank 0 of 1 on this machine: torn\nin two");
    }

    /// 2⁻²⁵ is lost where it is added to 1, and not where it is added to itself before.
    #[test]
    fn addends_are_added_one_after_the_other() {
        let small = f32::EPSILON / 4.0;
        assert_eq!(Alone.sum(vec![vec![1.0], vec![small], vec![small]]), [1.0]);
        let twice = 3.0 * small;
        assert_eq!(Alone.sum(vec![vec![twice], vec![small], vec![1.0]]), [1.0 + f32::EPSILON]);
    }
}
