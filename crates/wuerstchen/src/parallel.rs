//! Loops whose rounds run side by side where there are threads. No round sees another one's result, so
//! that the number of threads changes nothing.

#[cfg(feature = "parallel")]
use rayon::prelude::*;

/// Calls `f` with every item.
pub(crate) fn for_each<T: Send>(items: Vec<T>, f: impl Fn(T) + Send + Sync) {
    #[cfg(feature = "parallel")]
    let items = items.into_par_iter();
    #[cfg(not(feature = "parallel"))]
    let items = items.into_iter();
    items.for_each(f);
}

/// Calls `f` with every item, until one fails.
///
/// # Errors
///
/// An error of `f`; where several calls fail, any one of theirs.
pub(crate) fn try_for_each<T: Send, E: Send>(
    items: Vec<T>,
    f: impl Fn(T) -> Result<(), E> + Send + Sync,
) -> Result<(), E> {
    #[cfg(feature = "parallel")]
    let items = items.into_par_iter();
    #[cfg(not(feature = "parallel"))]
    let mut items = items.into_iter();
    items.try_for_each(f)
}
