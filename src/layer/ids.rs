//! Which ids of users and groups this process can use: its user namespace may know few of them.

use std::fs;

/// Ids that systems give to users and groups; 65534 and 65535 stand for nobody.
const ORDINARY: u64 = 65_534;

/// Whether this process is in the initial user namespace.
pub fn is_initial_namespace() -> bool {
    read("uid_map")
        .split_whitespace()
        .eq(["0", "0", "4294967295"])
}

/// Whether files can be given to whoever an image names: by root, in a namespace that knows the ordinary ids. The root
/// of `unshare -r` knows himself alone, and may not even change the files of others.
pub fn can_give_files_away() -> bool {
    let knows = |map| knows(&read(map), ORDINARY);
    rustix::process::geteuid().is_root() && knows("uid_map") && knows("gid_map")
}

fn read(map: &str) -> String {
    fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default()
}

/// Whether `map`, in the format of `user_namespaces(7)`, has all ids below `end`.
fn knows(map: &str, end: u64) -> bool {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.nth(1)??))
    };
    let mut ranges: Vec<(u64, u64)> = map.lines().filter_map(range).collect();
    ranges.sort_unstable();
    let known = ranges.iter().fold(0, |known, &(begin, length)| {
        if begin <= known {
            known.max(begin.saturating_add(length))
        } else {
            known
        }
    });
    known >= end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_knows_the_ids_of_all_its_ranges_without_a_gap() {
        let initial = "         0          0 4294967295\n";
        let rootless = "         0       1000          1\n         1     100000      65536\n";
        let unshared = "         0       1000          1\n";
        assert!(knows(initial, ORDINARY));
        assert!(knows(rootless, ORDINARY));
        assert!(!knows(unshared, ORDINARY));
        assert!(!knows("0 1000 1\n2 100000 65536\n", ORDINARY));
        assert!(knows("1 100000 65536\n0 1000 1\n", ORDINARY));
        assert!(!knows("", ORDINARY));
    }
}
