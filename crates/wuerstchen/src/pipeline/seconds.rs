//! How long computations take on a device.

use std::hint::black_box;

use burn::prelude::*;

use super::progress::Error;
use super::sampling::read;

/// A clock: seconds since some fixed moment.
pub type Clock<'a> = &'a dyn Fn() -> f64;

/// Seconds of a measurement: long against the steps of a browser's clock, which are up to a millisecond.
const LONG: f64 = 0.02;

/// Seconds of a computation on a device: the least of three measurements, each of as many computations in a row as
/// take 20 ms. The runs before, while shaders are compiled, do not count.
///
/// # Errors
///
/// The device failed.
pub async fn seconds_of<const D: usize>(
    compute: &dyn Fn() -> Tensor<D>,
    clock: Clock<'_>,
) -> Result<f64, Error> {
    let first_value = || compute().flatten::<1>(0, D - 1).narrow(0, 0, 1);
    let mut runs = 1;
    // One value of every result is used, because burn leaves out computations whose results nobody uses.
    let seconds = async |runs: u32| {
        let start = clock();
        let sum = (1..runs).fold(first_value(), |sum, _| sum + first_value());
        // burn may copy from the device only when bytes are used: without this, nothing would wait for the device.
        black_box(read(sum).await?.as_bytes());
        Ok::<_, Error>(clock() - start)
    };
    seconds(2).await?;
    let mut least = seconds(runs).await?;
    while least < LONG {
        runs *= 4;
        least = seconds(runs).await?;
    }
    // The least time counts, because other work on the machine only makes a measurement longer.
    for _ in 0..2 {
        least = least.min(seconds(runs).await?);
    }
    Ok(least / f64::from(runs))
}
