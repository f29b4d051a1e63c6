//! What [`super`] makes of disks that are written well or badly, and of images that cannot be disks.

use super::*;

fn option(text: &str) -> DiskOption {
    text.parse().expect(text)
}

fn refused(texts: &[&str]) -> String {
    disks(texts.iter().map(|text| option(text)).collect()).expect_err("must be refused").to_string()
}

#[test]
fn a_disk_is_read_with_all_its_keys_and_with_none_but_its_path() {
    let all = "path=/srv/a,,b.img,serial=root,readonly=false,mode=mirror,log=/srv/a.log,resync=full";

    let made = disks(vec![option(all), option("path=/srv/b.img")]).expect("two disks");

    assert_eq!(
        made,
        [
            DiskConfig {
                path: "/srv/a,b.img".into(),
                serial: "root".into(),
                read_only: false,
                mode: DiskMode::Mirror,
                log: Some("/srv/a.log".into()),
                resync: Resync::Full
            },
            DiskConfig {
                path: "/srv/b.img".into(),
                serial: "disk1".into(),
                read_only: false,
                mode: DiskMode::Mirror,
                log: None,
                resync: Resync::Changed
            },
        ]
    );
}

#[test]
fn a_shared_disk_has_neither_a_change_log_nor_a_copy_to_overwrite() {
    let made = disks(vec![option("path=/dev/a,mode=shared"), option("path=/dev/b,mode=shared")]).expect("two shared disks");
    assert!(made.iter().all(|disk| disk.mode == DiskMode::Shared && disk.log.is_none()));
    assert!(refused(&["path=/dev/a,mode=shared,log=/srv/a.log"]).contains("leave log= out"));
    assert!(refused(&["path=/dev/a,mode=shared,resync=full"]).contains("leave resync= out"));
}

#[test]
fn a_read_only_disk_has_neither_a_change_log_nor_a_copy_to_overwrite() {
    assert!(disks(vec![option("path=/a,readonly")]).expect("a read-only disk")[0].read_only);
    assert!(refused(&["path=/a,readonly,log=/srv/a.log"]).contains("leave log= out"));
    assert!(refused(&["path=/a,readonly,resync=full"]).contains("leave resync= out"));
}

#[test]
fn why_an_image_cannot_be_written_to_decides_what_to_do() {
    use nix::errno::Errno;
    for (error, words) in [(Errno::EROFS, "remount,rw"), (Errno::EACCES, "permissions"), (Errno::EIO, "dmesg")] {
        assert!(unwritable(error).contains(words), "{error}");
    }
}

#[test]
fn a_disk_that_is_written_badly_is_refused_with_what_to_write() {
    for (text, word) in [
        ("", "unknown key"),
        ("/srv/a.img", "write path=/srv/a.img"),
        ("serial=a", "path is missing"),
        ("path=", "path is empty"),
        ("path", "path needs a value"),
        ("path=/a,serail=x", "did you mean \"serial\"?"),
        ("path=/a,read-only", "did you mean \"readonly\"?"),
        ("path=/a,path=/b", "path is given twice"),
        ("path=/a,readonly=maybe", "readonly=false"),
        ("path=/a,mode=striped", "mode=mirror or mode=shared"),
        ("path=/a,resync=yes", "resync=full"),
    ] {
        let error = text.parse::<DiskOption>().expect_err(text);
        assert!(error.contains(word), "{text}: {error}");
    }
}

#[test]
fn two_disks_share_neither_path_nor_serial_nor_log() {
    assert!(refused(&["path=/a", "path=/a"]).contains("two disks"));
    assert!(refused(&["path=/a,serial=x", "path=/b,serial=x"]).contains("serial number"));
    assert!(refused(&["path=/a,log=/l", "path=/b,log=/l"]).contains("change log"));
    assert!(refused(&["path=/a,log=/b.lockstep", "path=/b"]).contains("change log"));
    assert!(refused(&["path=/a,log=/b", "path=/b"]).contains("change log /b is a disk's image"));
    assert!(refused(&["path=/a,serial=longer-than-twenty-bytes"]).contains("1 to 20"));
    let many: Vec<String> = (0..=MAX_DISKS).map(|n| format!("path=/{n}")).collect();
    assert!(refused(&many.iter().map(String::as_str).collect::<Vec<_>>()).contains("at most 16"));
}

fn check(texts: &[String]) -> Result<(), ConfigError> {
    check_images(&disks(texts.iter().map(|text| option(text)).collect()).expect("well written"))
}

#[test]
fn images_that_cannot_be_disks_are_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let path = |name: &str| format!("path={}", at(name).display());
    std::fs::write(at("good"), [0; 1024]).unwrap();
    std::fs::write(at("odd"), [0; 1000]).unwrap();
    std::fs::write(at("empty"), []).unwrap();
    std::os::unix::fs::symlink(at("good"), at("link")).unwrap();
    std::fs::hard_link(at("good"), at("twin")).unwrap();

    check(&[path("good")]).expect("a good image");
    for (given, words) in [
        (vec![path("missing")], "truncate -s 10G"),
        (vec![path("odd")], "truncate -s 1024 FILE (or 512)"),
        (vec![path("empty")], "it is empty"),
        (vec![format!("path={}", folder.path().display())], "directory"),
        (vec!["path=/dev/null".to_owned()], "neither a file nor a block device"),
        (vec![path("good"), path("link")], "the same file"),
        (vec![path("good"), path("twin")], "the same file"),
    ] {
        let error = check(&given).expect_err(words).to_string();
        assert!(error.contains(words), "{given:?}: {error}");
    }
}
