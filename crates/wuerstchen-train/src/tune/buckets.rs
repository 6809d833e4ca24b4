//! Sizes of image embeddings for pictures of any aspect ratio, and which pictures are trained on together.

use std::sync::{Arc, Mutex, PoisonError};

use crate::lots::stream;

/// Number of bucket steps on a square picture's side, unless the config says otherwise.
const STEPS: usize = 6;

/// The purpose of the random numbers that put an epoch in order.
const ORDER: u64 = 200;

/// Heights and widths of image embeddings, `[height, width]` in cells, none with more cells than the square one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buckets(Vec<[usize; 2]>);

impl Buckets {
    /// The square of `side` cells, and the sizes whose longer side is at most `max_aspect` times the shorter one. Their
    /// shorter sides are `step` cells apart.
    pub fn new(side: usize, max_aspect: f64, step: Option<usize>) -> Self {
        let step = step.unwrap_or(side / STEPS).max(1);
        let mut sizes = vec![[side; 2]];
        for short in (1..side).rev().filter(|short| (side - short).is_multiple_of(step)) {
            let long = side + (side * side / short - side) / step * step;
            if long as f64 > max_aspect * short as f64 {
                break;
            }
            sizes.extend([[short, long], [long, short]]);
        }
        Self(sizes)
    }

    /// All sizes, the square first.
    pub fn sizes(&self) -> &[[usize; 2]] {
        &self.0
    }

    /// The size whose aspect ratio is the nearest to that of a picture of this height and width.
    pub fn nearest(&self, picture: [usize; 2]) -> [usize; 2] {
        let log = |[height, width]: [usize; 2]| (width as f64 / height as f64).ln();
        let distance = |size: &[usize; 2]| (log(*size) - log(picture)).abs();
        let nearest = |a: &&[usize; 2], b: &&[usize; 2]| distance(a).total_cmp(&distance(b));
        *self.0.iter().min_by(nearest).expect("there is a square")
    }
}

/// The number of an epoch and the pictures of its batches.
type Epoch = (u64, Arc<Vec<Vec<u32>>>);

/// Which pictures every batch has; all are of one bucket. An epoch shows every picture at least once: the last
/// batch of a bucket is filled up with others of that bucket.
pub(crate) struct Order {
    seed: u64,
    batch_size: usize,
    /// The numbers of each bucket's pictures.
    buckets: Vec<Vec<u32>>,
    /// The batches of two epochs, the even and the odd one that were asked for last: where one ends, threads that make
    /// batches ahead ask for both.
    epochs: Mutex<[Epoch; 2]>,
}

impl Order {
    pub(crate) fn new(seed: u64, batch_size: usize, buckets: Vec<Vec<u32>>) -> Self {
        Self {
            seed,
            batch_size,
            buckets,
            epochs: Mutex::new([u64::MAX; 2].map(|none| (none, Arc::default()))),
        }
    }

    /// The pictures of a step's batch; depends on nothing but the step.
    pub(crate) fn batch(&self, step: u64) -> Vec<u32> {
        let batches = self.buckets.iter().map(|bucket| bucket.len().div_ceil(self.batch_size));
        let batches = batches.sum::<usize>() as u64;
        let (epoch, place) = (step / batches, (step % batches) as usize);
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let (found, batches) = &mut epochs[(epoch % 2) as usize];
        if *found != epoch {
            (*found, *batches) = (epoch, Arc::new(self.in_order(epoch)));
        }
        batches[place].clone()
    }

    fn in_order(&self, epoch: u64) -> Vec<Vec<u32>> {
        let mut rng = stream(self.seed, ORDER, epoch);
        let mut shuffle = |count: usize| {
            let mut order: Vec<usize> = (0..count).collect();
            for i in (1..count).rev() {
                order.swap(i, rng.below(i as u32 + 1) as usize);
            }
            order
        };
        let mut batches = Vec::new();
        for bucket in &self.buckets {
            let order = shuffle(bucket.len());
            let whole = bucket.len().div_ceil(self.batch_size) * self.batch_size;
            let filled: Vec<u32> = order.iter().cycle().take(whole).map(|&i| bucket[i]).collect();
            batches.extend(filled.chunks(self.batch_size).map(<[u32]>::to_vec));
        }
        shuffle(batches.len()).into_iter().map(|i| batches[i].clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 24² = 576 cells: 20 by 28 are 560, 16 by 36 are 576, which is 2.25 times as long.
    #[test]
    fn buckets_have_no_more_cells_than_the_square() {
        let sizes = |max_aspect| Buckets::new(24, max_aspect, None).0;
        assert_eq!(sizes(1.0), [[24, 24]]);
        assert_eq!(sizes(2.0), [[24, 24], [20, 28], [28, 20]]);
        assert_eq!(sizes(2.25)[3..], [[16, 36], [36, 16]]);
        for side in 1..40 {
            for [height, width] in Buckets::new(side, 4.0, None).0 {
                assert!(height * width <= side * side && height * width > 0, "{side}");
            }
        }
    }

    #[test]
    fn a_picture_goes_where_its_aspect_ratio_is_nearest() {
        let buckets = Buckets::new(24, 2.25, None);
        assert_eq!(buckets.nearest([100, 100]), [24, 24]);
        assert_eq!(buckets.nearest([3000, 4000]), [20, 28]);
        assert_eq!(buckets.nearest([4000, 3000]), [28, 20]);
        assert_eq!(buckets.nearest([100, 900]), [16, 36]);
    }

    /// Buckets of 5 and 2 pictures in batches of 2 are three and one batch.
    #[test]
    fn an_epoch_shows_every_picture_in_batches_of_one_bucket() {
        let order = Order::new(7, 2, vec![vec![0, 1, 2, 3, 4], vec![5, 6]]);
        let epoch =
            |first: u64| -> Vec<Vec<u32>> { (first..first + 4).map(|i| order.batch(i)).collect() };
        let (first, second) = (epoch(0), epoch(4));
        assert_ne!(first, second);
        assert_eq!(epoch(0), first);
        for batches in [first, second] {
            let is_one =
                |batch: &Vec<u32>| batch.iter().all(|&i| i < 5) || batch.iter().all(|&i| i > 4);
            assert!(batches.iter().all(|batch| batch.len() == 2 && is_one(batch)), "{batches:?}");
            let mut seen = batches.concat();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        }
    }
}
