//! The memory of this machine, and whether work fits into it.
//!
//! A limit of a control group counts as the machine's memory: containers and jobs of Slurm have one. So does a limit on
//! the address space of the process.

use std::fs::read_to_string;
use std::path::Path;

use crate::Result;
use crate::error::InputError;
use crate::table;

/// How far an estimate of memory may be above what the work then takes.
const SLACK: u64 = 2;

/// The memory that a process can have, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// All of it.
    pub total: u64,
    /// The part that nobody uses; swap counts.
    pub available: u64,
}

impl MachineMemory {
    /// As it is now; `None` where the operating system does not tell.
    pub fn now() -> Option<Self> {
        Self::below(Path::new("/"))
    }

    /// By the files of the system whose root is `root`.
    fn below(root: &Path) -> Option<Self> {
        let facts = read(root, "proc/meminfo");
        let kib = |key: &str| {
            let line = facts.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        let swap = kib("SwapFree:").unwrap_or(0);
        let machine = Self {
            total: kib("MemTotal:")? << 10,
            available: (kib("MemAvailable:")? + swap) << 10,
        };
        let groups = limits_of_groups(root);
        let limits = groups.into_iter().chain(address_space(root));
        Some(limits.fold(machine, |least, limit| Self {
            total: least.total.min(limit.total),
            available: least.available.min(limit.available),
        }))
    }

    /// In words: `20.1 GB of 23.0 GB available`.
    pub fn text(self) -> String {
        let (available, total) = (table::bytes(self.available), table::bytes(self.total));
        format!("{available} of {total} available")
    }
}

fn read(root: &Path, path: &str) -> String {
    read_to_string(root.join(path)).unwrap_or_default()
}

/// The limit on the address space of the process, if it has one.
fn address_space(root: &Path) -> Option<MachineMemory> {
    let limits = read(root, "proc/self/limits");
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max address space"))?;
    let limit = line.split_whitespace().next()?.parse().ok()?;
    Some(MachineMemory {
        total: limit,
        available: limit,
    })
}

/// The limits of the control groups of the process, and of all groups above them.
fn limits_of_groups(root: &Path) -> Vec<MachineMemory> {
    let mut found = Vec::new();
    for line in read(root, "proc/self/cgroup").lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else {
            continue;
        };
        let (mount, files) = if controllers.is_empty() {
            ("sys/fs/cgroup", &UNIFIED)
        } else if controllers.split(',').any(|name| name == "memory") {
            ("sys/fs/cgroup/memory", &LEGACY)
        } else {
            continue;
        };
        let mount = root.join(mount);
        let folder = mount.join(group.trim_start_matches('/'));
        let groups = folder
            .ancestors()
            .take_while(|above| above.starts_with(&mount));
        found.extend(groups.filter_map(|group| files.limit(group)));
    }
    found
}

/// The files of a control group, by version of the kernel's interface.
struct GroupFiles {
    limit: &'static str,
    used: &'static str,
    /// Keys of `memory.stat` for pages of files, which the kernel drops where memory is short.
    cache: [&'static str; 2],
}

const UNIFIED: GroupFiles = GroupFiles {
    limit: "memory.max",
    used: "memory.current",
    cache: ["inactive_file ", "active_file "],
};

const LEGACY: GroupFiles = GroupFiles {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: ["total_inactive_file ", "total_active_file "],
};

impl GroupFiles {
    /// The limit of a group, and what is left of it; `None` where it has no limit.
    fn limit(&self, group: &Path) -> Option<MachineMemory> {
        let number = |file: &str| read(group, file).trim().parse::<u64>().ok();
        let total = number(self.limit)?;
        let facts = read(group, "memory.stat");
        let cached = |key: &&str| {
            let line = facts.lines().find_map(|line| line.strip_prefix(*key))?;
            line.trim().parse::<u64>().ok()
        };
        let cache: u64 = self.cache.iter().filter_map(cached).sum();
        let used = number(self.used).unwrap_or(0).saturating_sub(cache);
        Some(MachineMemory {
            total,
            available: total.saturating_sub(used),
        })
    }
}

/// Refuses what cannot fit into memory; `what` is what takes an estimated `needed` bytes, as in “the run”.
pub fn check_memory(what: &str, needed: u64, hint: &str) -> Result<()> {
    match MachineMemory::now() {
        Some(machine) if needed / SLACK > machine.available => Err(InputError::Memory {
            what: what.to_owned(),
            needed,
            available: machine.available,
            hint: hint.to_owned(),
        }
        .into()),
        _ => Ok(()),
    }
}

/// A warning where an estimate is above what is available.
pub fn warning(what: &str, needed: u64) -> Option<String> {
    let machine = MachineMemory::now().filter(|machine| needed > machine.available)?;
    let (needed, machine) = (table::bytes(needed), machine.text());
    Some(format!(
        "{what} needs about {needed} of memory, with {machine}: the system may end it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A root with these files.
    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:       8000 kB\nMemFree: 1 kB\nMemAvailable:   6000 kB\nSwapFree: 100 kB\n",
    );

    #[test]
    fn without_limits_the_machine_counts() {
        let root = root(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/user\n"),
            ("sys/fs/cgroup/user/memory.max", "max\n"),
            (
                "proc/self/limits",
                "Max address space  unlimited  unlimited  bytes\n",
            ),
        ]);
        let machine = MachineMemory::below(root.path()).unwrap();
        assert_eq!(machine.total, 8000 << 10);
        assert_eq!(machine.available, 6100 << 10);
    }

    #[test]
    fn the_least_limit_of_a_group_or_one_above_it_counts() {
        let root = root(&[
            MEMINFO,
            ("proc/self/cgroup", "0::/job/step\n"),
            ("sys/fs/cgroup/job/memory.max", "4000000\n"),
            ("sys/fs/cgroup/job/memory.current", "3000000\n"),
            (
                "sys/fs/cgroup/job/memory.stat",
                "anon 5\ninactive_file 500000\nactive_file 100000\n",
            ),
            ("sys/fs/cgroup/job/step/memory.max", "max\n"),
        ]);
        let machine = MachineMemory::below(root.path()).unwrap();
        assert_eq!(machine.total, 4_000_000);
        assert_eq!(machine.available, 1_600_000);
    }

    #[test]
    fn the_older_interface_counts_too() {
        let root = root(&[
            MEMINFO,
            (
                "proc/self/cgroup",
                "5:cpu,cpuacct:/job\n4:memory:/job\n0::/\n",
            ),
            ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "3000000"),
            ("sys/fs/cgroup/memory/job/memory.usage_in_bytes", "1000000"),
            (
                "sys/fs/cgroup/memory/job/memory.stat",
                "total_inactive_file 200000\n",
            ),
            (
                "proc/self/limits",
                "Max address space  2500000  unlimited  bytes\n",
            ),
        ]);
        let machine = MachineMemory::below(root.path()).unwrap();
        assert_eq!(machine.total, 2_500_000);
        assert_eq!(machine.available, 2_200_000);
    }
}
