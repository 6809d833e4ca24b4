//! Loops whose rounds run side by side where there are threads. No round sees another one's result, so
//! that the number of threads changes nothing.

#[cfg(feature = "parallel")]
use rayon::prelude::*;

/// Calls `f` with every item.
pub(crate) fn for_each<T: Send>(items: Vec<T>, f: impl Fn(T) + Send + Sync) {
    #[cfg(feature = "parallel")]
    items.into_par_iter().for_each(f);
    #[cfg(not(feature = "parallel"))]
    items.into_iter().for_each(f);
}

/// Calls `f` with every item, until one fails.
///
/// # Errors
///
/// An error of `f`; which one, where several fail, is not said.
pub(crate) fn try_for_each<T: Send, E: Send>(
    items: Vec<T>,
    f: impl Fn(T) -> Result<(), E> + Send + Sync,
) -> Result<(), E> {
    #[cfg(feature = "parallel")]
    return items.into_par_iter().try_for_each(f);
    #[cfg(not(feature = "parallel"))]
    items.into_iter().try_for_each(f)
}
