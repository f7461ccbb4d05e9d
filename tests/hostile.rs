//! Layers made to mislead: what they cannot do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::tree::lines;
use crate::support::{Fixture, Mounted, is_kernel, is_root, requires};

/// The namespace of marks that this mount believes.
fn own() -> &'static str {
    if is_root() { "trusted" } else { "user" }
}

/// Few directories stay open.
const FEW: &str = "cache_dirs=8";

/// A directory beside the layers with a file `key` in it.
fn secret(fs: &Mounted) -> String {
    let dir = fs.aside("outside");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("key"), "secret").unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn an_owner_in_a_user_xattr_makes_no_suid_program_for_root() {
    requires!(is_root() && !is_kernel(), "what root believes, on plyfs");
    let layer = ". 0755 owner=1000:1000 user.containers.override_stat='0:0:0555:dir'; \
        prog '#!' 0755 owner=1000:1000 user.containers.override_stat='0:0:4755:file' \
        user.fuseoverlayfs.override_stat='0:0:4755:file'";
    let fs = Fixture::new().lower(layer).mount();
    let owner = |fs: &Mounted| {
        let stat = fs.stat("prog");
        (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777)
    };
    assert_eq!(owner(&fs), (1000, 1000, 0o755));
    fs.append("prog", "+");
    assert_eq!(owner(&fs), (1000, 1000, 0o755));
    // Who asks for it gets it.
    let fs = Fixture::new()
        .lower(layer)
        .option("xattr_permissions=2")
        .mount();
    assert_eq!(owner(&fs), (0, 0, 0o4755));
}

#[test]
fn user_marks_that_lead_elsewhere_are_not_believed_by_a_mount_of_root() {
    requires!(is_root(), "a user's mount believes user marks");
    let layers = |namespace: &str| {
        Fixture::new()
            .lower(&format!(
                "d/ {namespace}.overlay.redirect='/private'; d/own; \
                 f hole=6 {namespace}.overlay.metacopy='' {namespace}.overlay.redirect='/private/key'"
            ))
            .lower("private/ 0700; private/key 'secret'; f 'public'")
            .option("metacopy=on")
            .mount()
    };
    let fs = layers("user");
    assert_eq!(fs.names("d"), ["own"]);
    assert_eq!(fs.read("f"), [0; 6]);
    fs.chmod("f", 0o600);
    fs.append("f", "+");
    assert_eq!(fs.read("f"), [0, 0, 0, 0, 0, 0, b'+']);
    // The same marks of root lead there.
    let fs = layers("trusted");
    assert_eq!(
        (fs.names("d").join(" "), fs.text("f")),
        ("key own".to_owned(), "secret".to_owned())
    );
}

#[test]
fn no_redirect_leads_out_of_the_layers() {
    for value in [
        "../outside",
        "/../outside",
        "..",
        "/..",
        "a/../../outside",
        "/",
        ".",
        "./d",
    ] {
        let redirect = format!("{}.overlay.redirect='{value}'", own());
        let fs = Fixture::new()
            .lower(&format!("d/ {redirect}; d/own"))
            .lower("d/below; e/x")
            .mount();
        secret(&fs);
        let listing = fs::read_dir(fs.path("d"));
        if let Ok(listing) = listing {
            let names: Vec<_> = listing
                .map_while(|item| Some(item.ok()?.file_name()))
                .collect();
            assert!(names.iter().all(|name| name != "key"), "{value}: {names:?}");
        }
        assert!(fs::read(fs.path("d/key")).is_err(), "{value} leads outside");
        assert_eq!(
            fs.names("e"),
            ["x"],
            "the rest of the view works with {value}"
        );
    }
}

#[test]
fn no_redirect_follows_a_symlink_of_a_layer() {
    let redirect = |path: &str| format!("{}.overlay.redirect='{path}'", own());
    let mark = |path| format!("{}.overlay.metacopy='' {}", own(), redirect(path));
    let fs = Fixture::new()
        .lower("x")
        .lower(&format!(
            "d/ {}; d/own; f hole=6 {}; g hole=6 {}",
            redirect("/link"),
            mark("/link/key"),
            mark("/file")
        ))
        .lower("link -> ../outside; file -> ../outside/key")
        .option("metacopy=on")
        .not_for_the_kernel();
    requires!(
        is_root() || !is_kernel(),
        "the kernel has no metacopy with userxattr"
    );
    let fs = fs.mount();
    secret(&fs);
    assert_eq!(fs.names("d"), ["own"]);
    for name in ["f", "g"] {
        let read = fs::read(fs.path(name));
        assert!(
            !read.is_ok_and(|data| data == b"secret"),
            "{name} leads outside"
        );
    }
}

/// Puts a symlink to `outside` in the place of `dir`, which the mount knows as a directory but has not open any more.
fn swap(fs: &Mounted, dir: &Path, outside: &str) {
    assert_eq!(fs.mode("d/e") & 0o700, 0o700);
    for number in 0..40 {
        assert!(fs.is_absent(format!("many/{number}/x")));
    }
    fs::rename(dir, dir.with_extension("old")).unwrap();
    symlink(outside, dir).unwrap();
}

#[test]
fn a_lower_directory_that_becomes_a_symlink_leads_nowhere() {
    requires!(!is_kernel(), "the option is ours");
    let fs = Fixture::new()
        .lower("d/key 'own'; d/e/key 'own'")
        .lower(&lines(0..40, |number| format!("many/{number}/f\n")))
        .option(FEW)
        .lowers_change()
        .mount();
    let outside = secret(&fs);
    swap(&fs, &fs.lower(0, "d"), &outside);
    let read = fs::read(fs.path("d/key"));
    assert!(
        !read.is_ok_and(|data| data == b"secret"),
        "the symlink was followed"
    );
    fs::create_dir(fs.aside("outside/e")).unwrap();
    fs::write(fs.aside("outside/e/key"), "secret").unwrap();
    let read = fs::read(fs.path("d/e/key"));
    assert!(
        !read.is_ok_and(|data| data == b"secret"),
        "the symlink was followed"
    );
}

#[test]
fn an_upper_directory_that_becomes_a_symlink_leads_nowhere() {
    requires!(!is_kernel(), "the option is ours");
    let fs = Fixture::new()
        .lower("low/f 'f'")
        .upper(
            &(lines(0..40, |number| format!("many/{number}/f\n")) + "d/key 'own'; d/e/key 'own'"),
        )
        .option(FEW)
        .mount();
    let outside = secret(&fs);
    swap(&fs, &fs.upper("d"), &outside);
    let read = fs::read(fs.path("d/key"));
    assert!(
        !read.is_ok_and(|data| data == b"secret"),
        "the symlink was followed"
    );
    // Whatever these answer, they change nothing outside.
    fs::write(fs.path("d/new"), "new").ok();
    fs::write(fs.path("d/key"), "new").ok();
    fs::create_dir(fs.path("d/dir")).ok();
    fs::rename(fs.path("low/f"), fs.path("d/f")).ok();
    fs::remove_file(fs.path("d/key")).ok();
    let names: Vec<_> = fs::read_dir(fs.aside("outside")).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    assert_eq!(
        fs::read_to_string(fs.aside("outside/key")).unwrap(),
        "secret"
    );
}

#[test]
fn a_symlink_of_a_layer_is_shown_and_resolved_by_whoever_follows_it() {
    let fs = Fixture::new()
        .lower("l -> ../outside; up -> ../../../../../../../../..; d/in -> ../f; f 'f'")
        .mount();
    secret(&fs);
    assert_eq!(
        fs::read_link(fs.path("l")).unwrap(),
        Path::new("../outside")
    );
    // Relative to the mountpoint, as any symlink is.
    assert_eq!(fs.text("l/key"), "secret");
    assert_eq!(fs.text("d/in"), "f");
    fs.write("l/new", "n");
    assert!(
        fs.upper_lacks("l"),
        "a write through a symlink is no write to the mount"
    );
    assert_eq!(fs::read_to_string(fs.aside("outside/new")).unwrap(), "n");
}

#[test]
fn marks_in_a_wrong_format_take_nothing_else_down() {
    let own = own();
    let fs = Fixture::new()
        .lower(&format!(
            "o/ {own}.overlay.opaque='yes?'; o/x; f 'f' {own}.overlay.origin='nonsense' {own}.overlay.nlink='U+x'; \
             m 'm' {own}.overlay.metacopy='\\xff'; ok 'ok'"
        ))
        .lower("o/y; below 'b'")
        .not_for_the_kernel()
        .mount();
    assert_eq!(fs.text("ok"), "ok");
    assert_eq!(fs.text("f"), "f");
    assert_eq!(fs.text("below"), "b");
    fs.append("f", "+");
    assert_eq!(fs.text("f"), "f+");
}
