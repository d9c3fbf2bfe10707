//! What `relevo.toml` accepts, what it refuses, and in which words.

use proptest::prelude::*;
use relevo_actors::device::DeviceRole;
use relevo_actors::faults::Fault;

use super::load::SECTIONS;
use super::*;

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn an_empty_file_is_all_defaults() {
    assert_eq!(parse("").unwrap(), Config::default());
}

#[test]
fn the_example_is_all_defaults() {
    assert_eq!(parse(&example()).unwrap(), Config::default());
}

#[test]
fn the_example_shows_every_key_once_and_its_comments_are_valid_values() {
    let text = example();
    for (_, keys) in SECTIONS {
        for key in keys {
            assert!(text.contains(&format!("{} = ", key.name)), "{} is missing", key.name);
            assert!(!key.doc.is_empty(), "{} has no documentation", key.name);
        }
    }
    let opened: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(key) if key.contains(" = ") || key.starts_with('[') => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = parse(&opened).unwrap();
    assert_eq!(config.testing.faults, [Fault::PanicEngine { device: "cpu0".into(), step: 100 }]);
    assert_eq!(config.devices[0].threads, Some(2));
}

#[test]
fn two_devices_with_a_role_each_are_read() {
    let config = parse("[[device]]\nroles = [\"prefill\"]\nthreads = 1\n[[device]]\nroles = [\"decode\"]\n").unwrap();
    assert_eq!(config.devices.len(), 2);
    assert_eq!(config.devices[0].roles, [DeviceRole::Prefill]);
    assert_eq!(config.devices[1].roles, [DeviceRole::Decode]);
}

#[test]
fn scripted_devices_are_read_with_their_files_and_stay_among_themselves() {
    let devices = "[[device]]\nkind = \"scripted:a.toml\"\n[[device]]\nkind = \"scripted\"\n";
    let config = parse(devices).unwrap();
    let kinds: Vec<_> = config.devices.iter().map(|device| device.kind.clone()).collect();
    assert_eq!(kinds, [DeviceKind::Scripted(Some("a.toml".into())), DeviceKind::Scripted(None)]);
    assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    let mixed = refusal(&format!("{devices}[[device]]\nkind = \"cpu\""));
    let expected =
        "device[2].kind is \"cpu\", expected one that computes or not as device[0] does, which is \"scripted:a.toml\"";
    assert_eq!(mixed, expected);
    let threads = refusal("[[device]]\nkind = \"scripted\"\nthreads = 2");
    assert_eq!(threads, "device[0].threads is 2, expected none where kind is \"scripted\": it does not compute");
    assert!(refusal("[[device]]\nkind = \"scripted:\"").contains("`scripted:` is no kind of device, expected cpu"));
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    assert_eq!(refusal("[server]\nlisten_on = 1"), "unknown key `server.listen_on`, did you mean `server.listen`?");
    assert_eq!(refusal("[sever]\n"), "unknown key `sever`, did you mean `server`?");
    assert_eq!(refusal("[[device]]\nthread = 2"), "unknown key `device.thread`, did you mean `device.threads`?");
    assert_eq!(refusal("[model]\nqqqqqqqqq = 1"), "unknown key `model.qqqqqqqqq`");
}

#[test]
fn a_value_out_of_range_names_key_value_and_range() {
    let cases = [
        ("[server]\nmax_connections = 0", "server.max_connections is 0, expected 1 to 65536"),
        ("[model]\nmax_context_tokens = 8", "model.max_context_tokens is 8, expected 16 to 1048576"),
        ("[model]\nname = \"\"", "model.name is empty, expected the name or path of a model"),
        ("[[device]]\n[[device]]\nthreads = 0", "device[1].threads is 0, expected 1 to 1024"),
        ("[[device]]\nroles = []", "device[0].roles is empty, expected \"prefill\", \"decode\" or both"),
        ("[[device]]\nroles = [\"decode\"]", "device.roles is without \"prefill\", expected it on at least one device"),
        ("device = []", "device is empty, expected at least one"),
        (
            "[traces]\notlp_endpoint = \"https://a\"",
            "traces.otlp_endpoint is \"https://a\", expected a URL that begins with http:// (a collector with TLS is reached through one on this machine)",
        ),
        ("[traces]\nservice_name = \"\"", "traces.service_name is empty, expected a name"),
        ("[router]\nlease_ms = 1", "router.lease_ms is 1, expected 10 to 600000"),
        ("[router]\nslow_factor = 1", "router.slow_factor is 1, expected 2 to 1000"),
        ("[router]\nhang_after_ms = 99", "router.hang_after_ms is 99, expected 100 to 600000"),
    ];
    for (text, expected) in cases {
        assert_eq!(refusal(text), expected, "{text}");
    }
    assert!(refusal("[log]\nfilter = \"relevo=loud\"").starts_with("log.filter is \"relevo=loud\", expected"));
}

#[test]
fn a_carrier_is_refused_where_it_does_not_go() {
    let refusal = |carrier: &str, is_one_of_many| {
        let config = parse(&format!("[transport]\ncarrier = \"{carrier}\"")).unwrap();
        config.check_carrier(is_one_of_many).err().map(|error| error.to_string())
    };
    for is_one_of_many in [false, true] {
        assert_eq!(refusal("auto", is_one_of_many), None);
        assert_eq!(refusal("quic", is_one_of_many), None);
    }
    assert_eq!((refusal("in-process", false), refusal("shm", true)), (None, None));
    let alone = "transport.carrier is \"shm\", expected \"auto\", \"in-process\" or \"quic\" where all devices are in one process";
    assert_eq!(refusal("shm", false).as_deref(), Some(alone));
    let many =
        "transport.carrier is \"in-process\", expected \"auto\", \"quic\" or \"shm\" in a cluster of many processes";
    assert_eq!(refusal("in-process", true).as_deref(), Some(many));
}

#[test]
fn a_wrong_type_and_broken_syntax_name_the_line() {
    assert!(refusal("[server]\nmax_connections = \"many\"").starts_with("line 2: invalid type"));
    assert!(refusal("[server]\n\nlisten = \"here\"").starts_with("line 3: "));
    assert!(refusal("[server\n").starts_with("line 1: "));
    assert!(refusal("[model]\nnumerics = \"fast\"").contains("unknown variant `fast`, expected `default` or `exact`"));
}

#[test]
fn faults_need_their_flag() {
    let config = parse("[[testing.faults]]\nkind = \"drop-frame\"\nframe = 1").unwrap();
    assert!(matches!(config.check_faults(false), Err(ConfigError::FaultsNotAllowed)));
    assert!(config.check_faults(true).is_ok());
    assert!(Config::default().check_faults(false).is_ok());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_without_a_panic(text in "(\\[?[a-z_]{0,9}\\]?( = )?[0-9a-z\"\\[\\]{}.,é]{0,9}\n?){0,6}") {
        let _ = parse(&text);
    }
}
