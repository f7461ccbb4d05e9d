//! Docker's words with docker's output.

use serde_json::{Value, json};

use super::{
    File, Layout, NOT_FOUND, Place, USAGE, assert_contains, config, digest, docker_archive, gzip,
    layer, tar,
};

/// A place with the image `app:v1`, and its id.
fn loaded() -> (Place, String) {
    let place = Place::new();
    let (base, top) = (layer("f", "base"), layer("f", "top"));
    let mut config = config(&[&base, &top]);
    config["config"]["User"] = "me".into();
    config["invented"] = json!({"kept": true});
    config["history"] = json!([
        {"created": "2024-05-01T12:00:00Z", "created_by": "base"},
        {"created": "2024-05-02T12:00:00Z", "created_by": "ENV\tA=b", "empty_layer": true},
        {"created": "2024-05-03T12:00:00+02:00", "comment": "why",
         "created_by": "/bin/sh -c apt-get update && apt-get install -y everything"},
    ]);
    let mut layout = Layout::default();
    let image = layout.image(&config, &[("+gzip", &gzip(&base)), ("", &top)]);
    layout.list(image, "app:v1");
    place.write("app.tar", layout.tar());
    place.done(&["load", "app.tar"]);
    (place, digest(config.to_string().as_bytes()))
}

#[test]
fn images_are_listed_in_dockers_columns() {
    let (place, id) = loaded();
    let short = &id[7..19];
    let shown = place.done(&["images"]);
    let years = place.done(&["images", "--format={{.CreatedSince}}"]);
    let years = years.trim_end();
    assert!(years.ends_with("years ago"), "{shown}");
    assert_eq!(
        shown,
        format!(
            "REPOSITORY   TAG       IMAGE ID       CREATED       SIZE\napp          v1        {short}   {years}   4.1kB\n"
        )
    );
    assert_eq!(place.done(&["images", "-q"]), format!("{short}\n"));
    assert_eq!(
        place.done(&["images", "-q", "--no-trunc", "app"]),
        format!("{id}\n")
    );
    assert_eq!(place.done(&["images", "-q", "other"]), "");
    let json: Value = serde_json::from_str(&place.done(&["images", "--format", "json"])).unwrap();
    assert_eq!(json["Repository"], "app");
    assert_eq!(json["Size"], "4.1kB");
    assert_eq!(json["CreatedAt"], "2024-05-01 12:00:00 +0000 UTC");
    let table = place.done(&["images", "--format", r"table {{.ID}}\t{{.Tag}}"]);
    assert_eq!(table, format!("IMAGE ID       TAG\n{short}   v1\n"));
}

#[test]
fn history_has_dockers_columns_newest_first() {
    let (place, id) = loaded();
    let shown = place.done(&["history", "--human=false", "app:v1"]);
    let expected = [
        "IMAGE          CREATED AT             CREATED BY                                      SIZE      COMMENT",
        &format!(
            "{}   2024-05-03T10:00:00Z   /bin/sh -c apt-get update && apt-get install…   2048      why",
            &id[7..19]
        ),
        "<missing>      2024-05-02T12:00:00Z   ENV A=b                                         0         ",
        "<missing>      2024-05-01T12:00:00Z   base                                            2048      ",
    ];
    assert_eq!(shown, expected.join("\n") + "\n");
    let long = place.done(&[
        "history",
        "--no-trunc",
        "--format",
        "{{.ID}} {{.CreatedBy}}",
        "app:v1",
    ]);
    assert_eq!(
        long,
        format!(
            "{id} /bin/sh -c apt-get update && apt-get install -y everything\n<missing> ENV A=b\n<missing> base\n"
        )
    );
    assert_eq!(place.done(&["history", "-q", "app:v1"]).lines().count(), 3);
    assert_contains(&place.done(&["history", "app:v1"]), "years ago");
    assert_contains(&place.done(&["history", "app:v1"]), "2.05kB");
    // The step without a layer came after the base.
    assert_eq!(
        place.done(&["history", "--format={{.CreatedBy}}", "app:v1~1"]),
        "base\n"
    );
}

#[test]
fn layers_without_history_are_shown_all_the_same() {
    let place = Place::new();
    let tar = layer("f", "x");
    let mut config = config(&[&tar, &tar]);
    config["history"] = json!([{"created_by": "first", "created": null}]);
    let mut layout = Layout::default();
    let image = layout.image(&config, &[("", &tar), ("", &tar)]);
    layout.list(image, "app:1");
    place.write("app.tar", layout.tar());
    place.done(&["load", "app.tar"]);
    let shown = place.done(&[
        "history",
        "--format={{.CreatedBy}} {{.CreatedSince}} {{.Size}}",
        "app:1",
    ]);
    assert_eq!(shown, "<unknown> N/A 2.05kB\nfirst N/A 2.05kB\n");
}

#[test]
fn inspect_tells_what_docker_tells_and_where_a_mount_is() {
    let (place, id) = loaded();
    let inspect =
        || -> Value { serde_json::from_str(&place.done(&["inspect", "app:v1"])).unwrap() };
    let shown = inspect();
    let shown = &shown.as_array().unwrap()[0];
    assert_eq!(shown["Id"], id);
    assert_eq!(shown["RepoTags"], json!(["app:v1"]));
    assert_eq!(shown["Architecture"], "amd64");
    assert_eq!(shown["Config"]["User"], "me");
    assert_eq!(shown["Size"], 4096);
    let diff_ids = json!([digest(&layer("f", "base")), digest(&layer("f", "top"))]);
    assert_eq!(
        shown["RootFS"],
        json!({"Type": "layers", "Layers": diff_ids})
    );
    assert_eq!(shown["GraphDriver"]["Data"].get("MergedDir"), None);
    let lowers = shown["GraphDriver"]["Data"]["LowerDir"]
        .as_str()
        .unwrap()
        .to_owned();
    let top = lowers.split(':').next().unwrap();
    assert_eq!(
        std::fs::read(top).unwrap(),
        layer("f", "top"),
        "the topmost is first"
    );

    place.done(&["mount", "--rw", "app:v1", "m"]);
    let mounted = inspect();
    let data = &mounted[0]["GraphDriver"]["Data"];
    assert_eq!(data["MergedDir"], place.path("m").to_str().unwrap());
    assert_eq!(
        data["UpperDir"],
        place.store().join("uppers/app-v1/upper").to_str().unwrap()
    );
    assert_eq!(
        data["WorkDir"],
        place.store().join("uppers/app-v1/work").to_str().unwrap()
    );
    place.done(&["umount", "m"]);
    assert_eq!(inspect()[0]["GraphDriver"]["Mounts"], json!([]));

    let config: Value =
        serde_json::from_str(&place.done(&["inspect", "--config", "app:v1"])).unwrap();
    assert_eq!(config["invented"]["kept"], true);
    let manifest = place.done(&["inspect", "--manifest", "app:v1"]);
    assert_eq!(manifest, place.done(&["inspect", "--raw", "app:v1"]));
    assert_contains(&manifest, &id);
    assert_eq!(
        place.done(&["inspect", "-f", "{{.Os}}/{{len .RootFS.Layers}}", "app:v1"]),
        "linux/2\n"
    );
    assert_contains(
        &place.fails(USAGE, &["inspect", "-f", "{{.Nix}}", "app:v1"]),
        "no field 'Nix'",
    );
}

#[test]
fn the_tree_tells_which_bytes_are_shared() {
    let (place, id) = loaded();
    let base = layer("f", "base");
    place.write("other.tar", docker_archive("base:1", &[&base]));
    place.done(&["load", "other.tar"]);
    let (base_id, top_id) = (digest(&base), digest(&layer("f", "top")));
    let expected = format!(
        "Image ID: {}\nTags:    [app:v1]\nSize:    4.096kB (2.048kB unique, 2.048kB shared)\nImage Layers\n\
         ├── ID: {} Size: 2.048kB Shared with 1 image Top Layer of: [base:1]\n\
         └── ID: {} Size: 2.048kB Top Layer of: [app:v1]\n",
        &id[7..19],
        &base_id[7..19],
        &top_id[7..19],
    );
    assert_eq!(place.done(&["tree", "app:v1"]), expected);
    let json: Value = serde_json::from_str(&place.done(&["tree", "--json", "app:v1"])).unwrap();
    assert_eq!(json["Unique"], 2048);
}

#[test]
fn an_image_is_found_by_name_id_and_path() {
    let (place, id) = loaded();
    let manifest = digest(place.done(&["inspect", "--manifest", "app:v1"]).as_bytes());
    let by = |text: &str| place.done(&["inspect", "-f", "{{.Id}}", text]);
    for text in [
        "app:v1",
        "docker.io/library/app:v1",
        &id,
        &id[7..19],
        &id[7..11],
        &manifest,
        &format!("app@{manifest}"),
        "app.tar",
        "./app.tar",
        "./app.tar:v1",
        "./app.tar:@0",
    ] {
        assert_eq!(by(text).trim_end(), id, "{text}");
    }
    for (text, part) in [
        ("app", "no image 'app'"),
        ("app:v1~3", "the image has 2 layers; 3 cannot be taken off"),
        ("./app.tar:v9", "it has no image 'v9'; it has @0 (app:v1)"),
        ("0000000000", "no image"),
    ] {
        assert_contains(&place.fails(NOT_FOUND, &["history", text]), part);
    }
}

#[test]
fn sizes_are_of_what_is_unpacked_and_each_layer_counts_once() {
    let place = Place::new();
    let big = tar(&[File("zeros", &vec![0; 1_234_000])]);
    place.write("app.tar", docker_archive("app:1", &[&big, &big]));
    place.done(&["load", "app.tar"]);
    assert_eq!(place.done(&["images", "--format={{.Size}}"]), "1.24MB\n");
}
