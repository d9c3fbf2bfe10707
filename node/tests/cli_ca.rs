//! What `relevo ca` leaves on disk and says, as a person meets it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod program;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use program::{Finished, finish, relevo};
use relevo_transport::identity::NodeIdentity;
use serde_json::Value;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, Pem};
use x509_parser::revocation_list::CertificateRevocationList;

/// A folder to work in, with a data folder.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// A place with an authority.
    fn with_authority() -> Self {
        let place = Self::new();
        place.ok(&["init", "--name", "rack"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn ca(&self, arguments: &[&str]) -> Finished {
        let mut command = relevo(["ca"]);
        finish(command.args(arguments).arg("--data-dir").arg(self.path("data")).current_dir(self.folder.path()))
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> Finished {
        let run = self.ca(arguments);
        assert_eq!(run.status.code(), Some(0), "{arguments:?}: {run:?}");
        run
    }

    /// Name, state and serial of each certificate.
    fn list(&self) -> Vec<[String; 3]> {
        let listing: Value = serde_json::from_str(&self.ok(&["list", "--json"]).stdout).unwrap();
        let certificates = listing["certificates"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        certificates.iter().map(|one| ["name", "state", "serial"].map(|key| text(&one[key]))).collect()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn pem(path: &Path) -> Pem {
    Pem::iter_from_buffer(&fs::read(path).unwrap()).next().unwrap().unwrap()
}

#[test]
fn init_makes_an_authority_once() {
    let place = Place::new();
    let run = place.ok(&["init", "--name", "rack"]);
    let ca = place.path("data/ca");
    assert_eq!(run.stdout, format!("{}\n", ca.display()));
    assert_eq!([mode(&ca), mode(&ca.join("ca.key"))], [0o700, 0o600]);
    let certificate = pem(&ca.join("ca.pem"));
    let certificate = certificate.parse_x509().unwrap();
    assert!(certificate.is_ca());
    let days = certificate.validity().time_to_expiration().unwrap().whole_days();
    assert!((3652..=3653).contains(&days), "{days}");

    let key = fs::read(ca.join("ca.key")).unwrap();
    let again = place.ca(&["init"]);
    assert_eq!(again.status.code(), Some(1));
    assert_eq!(again.stderr, format!("relevo: {} is there already and is not overwritten\n", ca.display()));
    assert_eq!(fs::read(ca.join("ca.key")).unwrap(), key);
    let elsewhere = place.path("other");
    place.ok(&["init", "--dir", elsewhere.to_str().unwrap()]);
    assert_ne!(fs::read(elsewhere.join("ca.key")).unwrap(), key);
}

#[test]
fn issue_makes_a_folder_that_a_node_can_use() {
    let place = Place::with_authority();
    let run = place.ok(&["issue", "decode-1", "--role", "decode,prefill", "--host", "10.0.0.7,gpu-1.example.org"]);
    assert_eq!(run.stdout, "decode-1\n");
    let folder = place.path("decode-1");
    assert_eq!([mode(&folder), mode(&folder.join("node.key"))], [0o700, 0o600]);
    let node = NodeIdentity::load(&folder).unwrap();
    assert_eq!(node.own().name.as_str(), "decode-1");
    assert_eq!(node.own().roles.to_string(), "prefill,decode");

    let certificate = pem(&folder.join("node.pem"));
    let certificate = certificate.parse_x509().unwrap();
    let days = certificate.validity().time_to_expiration().unwrap().whole_days();
    assert!((29..=30).contains(&days), "{days}");
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    let uri = format!("relevo://{}/node/decode-1?roles=prefill,decode", node.own().cluster);
    for name in
        [GeneralName::URI(&uri), GeneralName::IPAddress(&[10, 0, 0, 7]), GeneralName::DNSName("gpu-1.example.org")]
    {
        assert!(names.contains(&name), "{name:?}");
    }

    let key = fs::read(folder.join("node.key")).unwrap();
    let again = place.ca(&["issue", "decode-1", "--role", "decode", "--host", "10.0.0.7"]);
    assert_eq!(
        (again.status.code(), again.stderr.as_str()),
        (Some(1), "relevo: decode-1 is there already and is not overwritten\n")
    );
    assert_eq!(fs::read(folder.join("node.key")).unwrap(), key);
    assert_eq!(place.list().len(), 1);
}

#[test]
fn a_second_certificate_leaves_the_first_good_and_says_so() {
    let place = Place::with_authority();
    place.ok(&["issue", "gw", "--role", "gateway", "--host", "10.0.0.1"]);
    let first = place.list()[0][2].clone();
    let run = place.ok(&["issue", "gw", "--role", "gateway", "--host", "10.0.0.1", "--out", "renewed"]);
    assert_eq!(run.stdout, "renewed\n");
    assert!(run.stderr.contains(&format!("{first} stays good until its end")), "{run:?}");
    assert_eq!(place.list().iter().filter(|one| one[1] == "valid").count(), 2);
}

#[test]
fn revoke_takes_all_certificates_of_a_name_and_tells_what_to_copy() {
    let place = Place::with_authority();
    place.ok(&["issue", "decode-1", "--role", "decode", "--host", "10.0.0.7"]);
    place.ok(&["issue", "decode-1", "--role", "decode", "--host", "10.0.0.7", "--out", "second"]);
    place.ok(&["issue", "ada", "--role", "operator"]);
    let run = place.ok(&["revoke", "decode-1"]);
    let list_path = place.path("data/ca/revoked.crl.pem");
    assert!(run.stderr.contains(&format!("copy {} over revoked.crl.pem", list_path.display())), "{run:?}");
    let mut told: Vec<String> = run.stdout.lines().map(str::to_owned).collect();
    told.sort();

    let contents = pem(&list_path).contents;
    let (_, list) = CertificateRevocationList::from_der(&contents).unwrap();
    let hex = |raw: &[u8]| raw.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    let mut listed: Vec<String> = list.iter_revoked_certificates().map(|entry| hex(entry.raw_serial())).collect();
    listed.sort();
    assert_eq!((listed.len(), &listed), (2, &told));
    assert_eq!(u64::try_from(list.crl_number().unwrap()).unwrap(), 2);

    let states: Vec<[String; 2]> = place.list().into_iter().map(|[name, state, _]| [name, state]).collect();
    assert_eq!(
        states,
        [["ada", "valid"], ["decode-1", "revoked"], ["decode-1", "revoked"]].map(|one| one.map(str::to_owned))
    );
    let table = place.ok(&["list"]).stdout;
    let rows: Vec<&str> =
        table.lines().filter(|line| line.contains("decode-1") && line.contains("revoked 20")).collect();
    assert_eq!(rows.len(), 2, "{table}");
    assert!(table.starts_with("cluster rack "), "{table}");
    assert!(table.contains("operator") && table.contains("days left"), "{table}");

    let again = place.ca(&["revoke", "decode-1"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(again.stderr.contains("are revoked or expired already"), "{again:?}");
}

#[test]
fn mistakes_are_named_with_what_would_be_right() {
    let place = Place::with_authority();
    place.ok(&["issue", "decode-1", "--role", "decode", "--host", "10.0.0.7"]);
    fs::write(place.path("file"), "").unwrap();
    let issue = |rest: &[&'static str]| [&["issue"], rest].concat();
    let cases: [(Vec<&str>, i32, &str); 12] = [
        (
            issue(&["x", "--role", "decod", "--host", "h"]),
            2,
            "unknown role `decod`, expected gateway, coordinator, prefill, decode, expert or operator; did you mean `decode`?",
        ),
        (
            issue(&["x", "--role", "decode", "--host", "10.0.0.700"]),
            2,
            "`10.0.0.700` is no host, expected an IP address or a DNS name",
        ),
        (issue(&["x", "--role", "decode", "--host", "a.relevo.internal"]), 2, "kept for nodes' own names"),
        (issue(&["x", "--role", "decode"]), 2, "where can x be reached? expected --host"),
        (issue(&["x", "--host", "h"]), 2, "--role <ROLE>"),
        (
            issue(&["../x", "--role", "decode", "--host", "h"]),
            2,
            "`../x` is no name, expected 1 to 63 of a-z, 0-9 and -",
        ),
        (
            issue(&["x", "--role", "decode", "--host", "h", "--out", "file"]),
            1,
            "file is there already and is not overwritten",
        ),
        (issue(&["x", "--role", "decode", "--host", "h", "--out", "file/x"]), 1, "cannot make file/x"),
        (
            issue(&["x", "--role", "decode", "--host", "h", "--dir", "gone"]),
            1,
            "no certificate authority in gone: `relevo ca init` makes one",
        ),
        (vec!["list", "--dir", "gone"], 1, "no certificate authority in gone"),
        (vec!["revoke", "decod-1"], 1, "no certificate of `decod-1` was issued here, did you mean `decode-1`?"),
        (vec!["init", "--name", "My Rack", "--dir", "new"], 2, "`My Rack` is no name"),
    ];
    for (arguments, code, expected) in cases {
        let run = place.ca(&arguments);
        assert_eq!((run.status.code(), run.stdout.as_str()), (Some(code), ""), "{arguments:?}: {run:?}");
        assert!(run.stderr.contains(expected), "{arguments:?}: {}", run.stderr);
    }
    assert!(!place.path("x").exists() && !place.path("new").exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let place = Place::with_authority();
    // A file where the folder of copies belongs: root, as which tests may run, is stopped by no permission.
    fs::write(place.path("data/ca/issued"), "").unwrap();
    let run = place.ca(&["issue", "x", "--role", "operator"]);
    assert_eq!(run.status.code(), Some(1), "{run:?}");
    assert!(run.stderr.starts_with("relevo: cannot ") && run.stderr.contains("data/ca/issued"), "{run:?}");
    assert_eq!((run.stderr.lines().count(), place.path("x").exists()), (1, false));
}
