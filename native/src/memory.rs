//! Whether the machine has enough memory for a piece of work.

use std::fs::read_to_string;

use anyhow::{Result, bail};

/// Fails if `what`, its name in the error, takes more bytes than the machine has. A check before the work is needed
/// because a system that runs out of memory ends programs without a message.
pub(crate) fn check(what: &str, bytes: usize) -> Result<()> {
    match total() {
        Some(total) if bytes as u64 > total => {
            bail!(
                "{what} would take {}, this machine has {}",
                gigabytes(bytes as u64),
                gigabytes(total)
            )
        }
        _ => Ok(()),
    }
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.1} GB", bytes as f64 / 1e9)
}

/// Bytes of main memory, or of what a container may use of it; `None` where the system does not tell.
fn total() -> Option<u64> {
    let machine = of_machine(&read_to_string("/proc/meminfo").ok()?)?;
    let container = read_to_string("/sys/fs/cgroup/memory.max").ok();
    let container = container.and_then(|bytes| bytes.trim().parse().ok());
    Some(container.map_or(machine, |bytes: u64| bytes.min(machine)))
}

/// The bytes that Linux tells of, in units of 1024.
fn of_machine(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(1024 * kibibytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_told_in_kibibytes() {
        assert_eq!(of_machine("MemTotal:       24576 kB\nMemFree:  1 kB\n"), Some(24 << 20));
        assert_eq!(of_machine("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn nothing_takes_more_than_there_is() {
        check("a byte", 1).unwrap();
        if total().is_some() {
            let error = check("all", usize::MAX).unwrap_err().to_string();
            assert!(
                error.starts_with("all would take 18446744073.7 GB, this machine has"),
                "{error}"
            );
        }
    }
}
