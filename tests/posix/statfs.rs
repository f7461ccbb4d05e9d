//! statfs(2).

use crate::support::Fixture;

#[test]
fn statfs_tells_the_space_of_the_upper() {
    let fs = Fixture::new().lower("f").mount();
    let (merged, upper) = (
        rustix::fs::statvfs(fs.path("")).unwrap(),
        rustix::fs::statvfs(fs.upper("")).unwrap(),
    );
    assert_eq!(merged.f_frsize, upper.f_frsize);
    assert_eq!(merged.f_blocks, upper.f_blocks);
    assert_eq!(merged.f_files, upper.f_files);
    assert!(merged.f_bavail.abs_diff(upper.f_bavail) < 1 << 20);
}

#[test]
fn names_may_have_255_bytes() {
    let fs = Fixture::new().lower("f").mount();
    assert_eq!(rustix::fs::statvfs(fs.path("f")).unwrap().f_namemax, 255);
}

#[test]
fn df_answers_in_every_directory() {
    let fs = Fixture::new().lower("d/e/f").mount();
    assert_eq!(fs.sh("df . d d/e | wc -l"), "4");
}
