use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use super::known::{self, EFFECTIVE};
use super::*;
use crate::cli::exit::Exit;
use crate::layer::stack::LayerSource;

const USER: Defaults = Defaults {
    root: false,
    source: "plyfs",
};
const ROOT: Defaults = Defaults { root: true, ..USER };

fn draft(options: &str) -> Result<Draft, Failure> {
    let mut draft = Draft {
        mountpoint: Some("/m".into()),
        ..Draft::default()
    };
    draft.options(OsStr::new(options)).map(|()| draft)
}

fn parsed_for(options: &str, defaults: Defaults) -> MountOptions {
    let mut draft = draft(options).unwrap();
    draft.lower("/l".into());
    draft.finish(defaults).unwrap()
}

fn parsed(options: &str) -> MountOptions {
    parsed_for(options, USER)
}

fn refused(options: &str) -> String {
    let failure = draft(options)
        .and_then(|mut draft| {
            draft.lower("/l".into());
            draft.finish(USER)
        })
        .unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    failure.sentence
}

fn paths(stack: &StackConfig) -> Vec<&Path> {
    stack.lowers.iter().map(LayerSource::path).collect()
}

#[test]
fn the_overlay_spelling_gives_layers_upper_and_workdir() {
    let draft = draft("lowerdir=/top:/below,upperdir=/u,workdir=/w").unwrap();
    let stack = draft.finish(USER).unwrap().stack;
    assert_eq!(paths(&stack), [Path::new("/top"), Path::new("/below")]);
    let upper = stack.upper.unwrap();
    assert_eq!((upper.upper, upper.work), ("/u".into(), "/w".into()));
}

#[test]
fn the_words_podman_and_buildah_send_are_understood() {
    let options = "lowerdir=l/A:l/B,upperdir=/s/diff,workdir=/s/work,uidmapping=0:1000:1:1:100000:65536,\
                   gidmapping=0:1000:1:1:100000:65536,xattr_permissions=2,volatile,\
                   context=\"system_u:object_r:container_file_t:s0:c1,c2\",nodev,fsync=0";
    let options = draft(options).unwrap().finish(USER).unwrap();
    assert_eq!(paths(&options.stack), [Path::new("l/A"), Path::new("l/B")]);
    assert_eq!(options.stack.override_stat, OverrideStat::Containers);
    assert_eq!(options.stack.durability, Durability::Volatile);
    assert_eq!(
        options.overlay.uid_map,
        [
            IdRange {
                host: 0,
                inside: 1000,
                len: 1
            },
            IdRange {
                host: 1,
                inside: 100_000,
                len: 65536
            }
        ]
    );
    assert_eq!(options.overlay.gid_map, options.overlay.uid_map);
    assert_eq!(
        options.session.security,
        [r#"context="system_u:object_r:container_file_t:s0:c1,c2""#]
    );
}

#[test]
fn the_words_of_fstab_and_mount_are_accepted() {
    parsed(
        "rw,_netdev,noauto,user,users,nofail,x-systemd.automount,defaults,nouser,noatime,dev,suid",
    );
}

#[test]
fn every_documented_option_is_understood() {
    for (syntax, _) in EFFECTIVE {
        let (name, values) = syntax
            .split_once('=')
            .map_or((*syntax, None), |(n, v)| (n, Some(v)));
        let value = match values {
            None => None,
            Some("HOST:INSIDE:LEN") => Some("0:1000:1"),
            Some("N" | "UID" | "GID" | "SECONDS") => Some("7"),
            Some(words) => words.split(['|', ':']).next(),
        };
        let option = value.map_or(name.to_owned(), |value| format!("{name}={value}"));
        assert!(
            draft(&option).is_ok(),
            "{option}: {:?}",
            draft(&option).err()
        );
    }
}

#[test]
fn options_without_effect_change_nothing() {
    let plain = format!("{:?}", parsed(""));
    for option in known::accepted_without_effect() {
        assert_eq!(format!("{:?}", parsed(&option)), plain, "{option}");
    }
}

#[test]
fn an_unknown_option_is_named_with_the_nearest_known_one() {
    assert_eq!(
        refused("lowredir=/a"),
        "unknown option 'lowredir'; did you mean 'lowerdir'?"
    );
    assert_eq!(
        refused("metacpy=on"),
        "unknown option 'metacpy'; did you mean 'metacopy'?"
    );
    assert_eq!(
        refused("completely-different"),
        "unknown option 'completely-different'; see 'plyfs mount --help'"
    );
}

#[test]
fn options_whose_meaning_we_cannot_give_are_refused_with_the_reason() {
    for (option, reason) in [
        ("nfs_export=on", "cannot be exported"),
        ("verity=require", "not checked"),
        ("plugins=a.so", "plugins"),
        ("nodefault_permissions", "always checks permissions"),
        ("redirect_dir=nofollow", "always followed"),
        ("allow_root", "allow_other"),
        ("remount", "unmount and mount again"),
        ("sync", "fsync=strict"),
        ("lowerdir+=/a", "lowerdir=TOP:BELOW"),
        ("uuid=on", "filesystem id"),
        ("attr_timeout=1", "timeout=SECS"),
    ] {
        let sentence = refused(option);
        assert!(sentence.contains("is not supported: "), "{sentence}");
        assert!(sentence.contains(reason), "{option}: {sentence}");
    }
}

#[test]
fn a_missing_lower_layer_is_refused() {
    let failure = draft("ro").unwrap().finish(USER).unwrap_err();
    assert!(
        failure.sentence.starts_with("no lower layer is given"),
        "{failure}"
    );
}

#[test]
fn upper_and_workdir_need_each_other() {
    assert!(refused("upperdir=/u").starts_with("upperdir needs workdir"));
    assert!(refused("workdir=/w").starts_with("workdir is of no use"));
}

#[test]
fn paths_given_twice_are_refused() {
    assert!(refused("lowerdir=/a,lowerdir=/b").contains("'lowerdir' is given twice"));
    assert!(refused("upperdir=/a,upperdir=/b").contains("upperdir is given twice"));
    assert!(refused("workdir=/a,workdir=/b").contains("workdir is given twice"));
}

#[test]
fn layers_of_both_spellings_stack_in_the_order_given() {
    let mut draft = Draft {
        mountpoint: Some("/m".into()),
        ..Draft::default()
    };
    draft.lower("/1".into());
    draft.options(OsStr::new("lowerdir=/2:/3")).unwrap();
    draft.lower("/4".into());
    let stack = draft.finish(USER).unwrap().stack;
    assert_eq!(paths(&stack), ["/1", "/2", "/3", "/4"].map(Path::new));
}

#[test]
fn the_owner_of_files_in_tars_can_be_chosen() {
    assert_eq!(parsed("owner=me").stack.owner, Owner::Me);
    assert_eq!(parsed("owner=image").stack.owner, Owner::Image);
    assert_eq!(parsed("ro").stack.owner, Owner::Auto);
    assert!(draft("owner=you").is_err());
}

#[test]
fn the_later_of_two_contradicting_words_counts() {
    assert!(parsed("rw,ro").session.read_only);
    assert!(!parsed("ro,rw").session.read_only);
    assert_eq!(
        parsed("volatile,fsync=strict").stack.durability,
        Durability::Strict
    );
    assert_eq!(
        parsed("sync=1,sync=0").stack.durability,
        Durability::Volatile
    );
}

#[test]
fn durability_words_of_kernel_and_fuse_overlayfs_mean_the_same() {
    for (option, durability) in [
        ("", Durability::Auto),
        ("fsync=auto", Durability::Auto),
        ("fsync=1", Durability::Auto),
        ("sync=1", Durability::Auto),
        ("fsync=strict", Durability::Strict),
        ("fsync=volatile", Durability::Volatile),
        ("fsync=0", Durability::Volatile),
        ("sync=0", Durability::Volatile),
        ("volatile", Durability::Volatile),
    ] {
        assert_eq!(parsed(option).stack.durability, durability, "{option}");
    }
}

#[test]
fn only_root_lets_others_in_unasked() {
    assert!(!parsed_for("", USER).session.allow_other);
    assert!(parsed_for("allow_other", USER).session.allow_other);
    assert!(parsed_for("", ROOT).session.allow_other);
}

/// As container engines call.
fn parsed_for_engine(options: &str) -> MountOptions {
    let mut draft = draft(options).unwrap();
    draft.lower("/l".into());
    draft.engine = true;
    draft.finish(ROOT).unwrap()
}

#[test]
fn root_honours_suid_and_devices_engines_devices_when_asked_and_a_user_neither() {
    let flags = |options: MountOptions| (options.session.suid, options.session.dev);
    assert_eq!(flags(parsed_for("", ROOT)), (true, true));
    assert_eq!(flags(parsed_for("nodev,nosuid", ROOT)), (false, false));
    assert_eq!(flags(parsed_for_engine("")), (true, false));
    assert_eq!(flags(parsed_for_engine("dev,nosuid")), (false, true));
    assert_eq!(flags(parsed_for("dev,suid", USER)), (false, false));
}

#[test]
fn what_is_volatile_of_an_engine_is_never_synced() {
    let durability = |options| parsed_for_engine(options).stack.durability;
    for volatile in ["volatile", "fsync=0", "sync=0", "fsync=volatile"] {
        assert_eq!(durability(volatile), Durability::Unsynced, "{volatile}");
    }
    assert_eq!(durability(""), Durability::Auto);
    assert_eq!(durability("fsync=strict"), Durability::Strict);
}

#[test]
fn how_mounts_below_spread_is_said_as_mount_8_says_it() {
    use MountPropagationFlags as Spread;
    let propagation = |options| parsed(options).session.propagation;
    assert_eq!(propagation(""), None);
    assert_eq!(propagation("private"), Some(Spread::PRIVATE));
    assert_eq!(propagation("rshared"), Some(Spread::SHARED | Spread::REC));
    assert_eq!(propagation("private,slave"), Some(Spread::DOWNSTREAM));
    assert_eq!(
        propagation("runbindable"),
        Some(Spread::UNBINDABLE | Spread::REC)
    );
    assert_eq!(refused("private=1"), "option 'private' takes no value");
}

#[test]
fn an_ephemeral_mount_takes_no_upper_and_needs_no_syncs() {
    let options = parsed("ephemeral");
    assert!(options.ephemeral);
    assert_eq!(options.stack.durability, Durability::Volatile);
    assert!(options.overlay.metacopy);
    assert!(!parsed("ephemeral,metacopy=off").overlay.metacopy);
    assert!(refused("ephemeral,upperdir=/u,workdir=/w").contains("upper of its own"));
}

#[test]
fn metacopy_contradicts_redirect_dir_off() {
    assert!(refused("metacopy=on,redirect_dir=off").contains("contradict"));
    assert!(parsed("metacopy=on").overlay.metacopy);
}

#[test]
fn directories_are_renamed_by_a_mark_but_copied_for_engines_that_do_not_ask_for_marks() {
    let redirect_dir = |options: MountOptions| options.overlay.redirect_dir;
    assert_eq!(redirect_dir(parsed("")), RedirectDir::On);
    assert_eq!(redirect_dir(parsed("redirect_dir=off")), RedirectDir::Off);
    assert_eq!(redirect_dir(parsed_for_engine("")), RedirectDir::Copy);
    // The engine asks for marks that only some can read.
    assert_eq!(
        redirect_dir(parsed_for_engine("metacopy=on")),
        RedirectDir::On
    );
    assert_eq!(
        redirect_dir(parsed_for_engine("redirect_dir=on")),
        RedirectDir::On
    );
}

#[test]
fn the_id_maps_of_podman_begin_with_a_colon() {
    let map = parsed("uidmapping=:0:1:1001:1001:0:1").overlay.uid_map;
    assert_eq!(map, parsed("uidmapping=0:1:1001:1001:0:1").overlay.uid_map);
    assert_eq!(map.len(), 2);
}

#[test]
fn malformed_id_maps_are_refused() {
    for map in [
        "0",
        "0:1",
        "0:1:0",
        "0:1:x",
        "0:1:1:2",
        "4294967295:0:2",
        "-1:0:1",
        "0:1:1,",
        "::0:1:1",
        ":",
    ] {
        let sentence = refused(&format!("uidmapping={map}").replace("1:1,", "1:1:"));
        assert!(
            sentence.contains("must be HOST:INSIDE:LEN"),
            "{map}: {sentence}"
        );
    }
    let whole = parsed("uidmapping=0:0:4294967295").overlay.uid_map;
    assert_eq!(
        whole,
        [IdRange {
            host: 0,
            inside: 0,
            len: u32::MAX
        }]
    );
}

#[test]
fn squash_to_uid_wins_over_squash_to_root_in_either_order() {
    for options in [
        "squash_to_root,squash_to_uid=5",
        "squash_to_uid=5,squash_to_root",
    ] {
        let overlay = parsed(options).overlay;
        assert_eq!(
            (overlay.squash_uid, overlay.squash_gid),
            (Some(5), Some(0)),
            "{options}"
        );
    }
}

#[test]
fn timeout_takes_fractions_and_for_ever() {
    assert_eq!(
        parsed("timeout=0.5").overlay.timeout,
        Some(Duration::from_millis(500))
    );
    assert_eq!(parsed("timeout=0").overlay.timeout, Some(Duration::ZERO));
    assert_eq!(parsed("timeout=1e300").overlay.timeout, None);
    assert_eq!(parsed("").overlay.timeout, None);
    for value in ["-1", "nan", "x", ""] {
        assert!(refused(&format!("timeout={value}")).contains("'timeout'"));
    }
}

#[test]
fn poll_and_threads_say_what_they_take() {
    assert_eq!(parsed("poll=50").session.poll, Poll::Micros(50));
    assert_eq!(parsed("poll=off").session.poll, Poll::Off);
    assert!(refused("poll=fast").contains("microseconds"));
    assert_eq!(parsed("threads=4").session.threads, 4);
    assert_eq!(parsed("threads=4,threaded=0").session.threads, 1);
    assert_eq!(parsed("threads=4,threaded=1").session.threads, 4);
    assert!(refused("threads=0").contains("at least 1"));
}

#[test]
fn a_flag_with_a_value_and_a_value_missing_are_refused() {
    assert_eq!(refused("volatile=1"), "option 'volatile' takes no value");
    assert_eq!(refused("ro=1"), "option 'ro' takes no value");
    assert_eq!(
        refused("upperdir"),
        "option 'upperdir' needs a value: upperdir=VALUE"
    );
    assert_eq!(refused("noatime=1"), "option 'noatime' takes no value");
    assert_eq!(
        refused("max_write=big"),
        "option 'max_write' needs a number, not 'big'"
    );
    assert_eq!(
        refused("index=yes"),
        "option 'index' must be one of on, off, not 'yes'"
    );
}

#[test]
fn debug_stays_in_the_foreground() {
    let options = parsed("debug");
    assert!(options.debug && options.foreground);
}

#[test]
fn given_options_are_remembered_without_layers_and_noise() {
    assert_eq!(
        parsed("upperdir=/u,workdir=/w,metacopy=on,noatime,ro").given,
        ["metacopy=on", "ro"]
    );
}
