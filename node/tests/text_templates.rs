//! Chat templates behave as they do in transformers, and hostile ones end.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use relevo::text::{ChatTemplate, TemplateError, TemplateInput};
use serde_json::{Map, Value, json};

/// Friday, 29 February 2036, 13:05:09 UTC.
const LEAP_DAY: u64 = 2_087_903_109;

fn render_with(source: &str, messages: &Value, extra: &Map<String, Value>) -> Result<String, TemplateError> {
    let template = ChatTemplate::new(source, Some("<s>"), Some("</s>"))?;
    template.render(&TemplateInput { messages, add_generation_prompt: true, extra, unix_seconds: LEAP_DAY })
}

fn render(source: &str) -> String {
    let messages = json!([{"role": "user", "content": "Hi <b> & \"you\""}]);
    render_with(source, &messages, &Map::new()).unwrap()
}

#[test]
fn variables_blocks_and_escapes_are_jinjas_as_transformers_sets_it_up() {
    assert_eq!(render("{{ bos_token }}|{{ eos_token }}|{{ messages[0]['content'] }}"), "<s>|</s>|Hi <b> & \"you\"");
    assert_eq!(render("a\n    {% if add_generation_prompt %}\nb\n    {% endif %}\nc"), "a\nb\nc");
    assert_eq!(render("{{ 'one\ntwo\\nthree' }}\n"), "one\ntwo\nthree");
    assert_eq!(render("{%- for m in messages -%} {{ m.role }}{% break %} {%- endfor -%}"), "user");
    assert_eq!(render("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 2 %}{{ ns.n }}"), "2");
}

#[test]
fn python_methods_work_on_strings_lists_and_objects() {
    assert_eq!(
        render("{{ ' x '.strip() }}{{ 'a-b'.split('-')[1] }}{{ 'Ab'.upper() }}{{ 'ab'.startswith('a') }}"),
        "xbABTrue"
    );
    assert_eq!(render("{% for k, v in messages[0].items() %}{{ k }};{% endfor %}"), "role;content;");
    assert_eq!(render("{{ messages[0].get('name', 'none') }}"), "none");
    assert_eq!(
        render("{{ 'a  b'.split() | length }}{{ 'a\nb'.splitlines()[1] }}{{ '{:>4}|{}'.format(1, 'x') }}"),
        "2b   1|x"
    );
    assert_eq!(render("{{ messages[0]['content'][:2] }}{{ messages[-1].role }}"), "Hiuser");
}

#[test]
fn tojson_writes_what_pythons_json_writes() {
    let mut extra = Map::new();
    extra.insert("x".to_owned(), json!({"b": [1, 2.5, true, null], "a": "é<'\""}));
    let with = |source: &str| render_with(source, &json!([]), &extra).unwrap();
    assert_eq!(with("{{ x | tojson }}"), r#"{"b": [1, 2.5, true, null], "a": "é<'\""}"#);
    assert_eq!(with("{{ x | tojson(sort_keys=true) }}"), r#"{"a": "é<'\"", "b": [1, 2.5, true, null]}"#);
    assert_eq!(with("{{ x.b[:1] | tojson(indent=4) }}"), "[\n    1\n]");
    assert_eq!(with("{{ x.a | tojson(ensure_ascii=False) }}"), r#""é<'\"""#);
}

#[test]
fn dates_are_the_callers() {
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}"), "29 Feb 2036");
    assert_eq!(
        render("{{ strftime_now('%A %B %e, %H:%M:%S %I%p %y %% %Q') }}"),
        "Friday February 29, 13:05:09 01PM 36 % %Q"
    );
    assert_eq!(render("{{ strftime_now('%Y-%m-%d') == strftime_now('%F') }}"), "True");
}

#[test]
fn a_conversation_that_the_template_refuses_is_the_callers_fault() {
    let error = render_with("{{ raise_exception('roles must alternate') }}", &json!([]), &Map::new()).unwrap_err();
    assert_eq!(error, TemplateError::Refused { reason: "roles must alternate".to_owned() });
    let inside = "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}";
    let error = render_with(inside, &json!([]), &Map::new()).unwrap_err();
    assert_eq!(error, TemplateError::Refused { reason: "deep".to_owned() });
}

#[test]
fn a_clients_variables_do_not_replace_the_conversation() {
    let mut extra = Map::new();
    extra.insert("bos_token".to_owned(), json!("evil"));
    extra.insert("enable_thinking".to_owned(), json!(false));
    assert_eq!(render_with("{{ bos_token }} {{ enable_thinking }}", &json!([]), &extra).unwrap(), "<s> False");
}

#[test]
fn broken_templates_and_conversations_say_what_is_wrong() {
    assert!(matches!(ChatTemplate::new("{% if %}", None, None), Err(TemplateError::Invalid { .. })));
    let large = "x".repeat((1 << 20) + 1);
    assert!(ChatTemplate::new(&large, None, None).unwrap_err().to_string().contains("1048576"));
    let error = render_with("{{ messages[0].content + 1 }}", &json!([{"content": "x"}]), &Map::new()).unwrap_err();
    assert!(matches!(error, TemplateError::Failed { .. }), "{error}");
}

#[test]
fn hostile_templates_run_out_of_fuel_or_room() {
    let fails = |source: &str, word: &str| {
        let error = render_with(source, &json!([]), &Map::new()).unwrap_err();
        assert!(matches!(error, TemplateError::Failed { .. }), "{error}");
        assert!(error.to_string().contains(word), "{word:?} is not in {error}");
    };
    let nested = "{% for a in range(10000) %}".repeat(3) + &"{% endfor %}".repeat(3);
    fails(&nested, "fuel");
    fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion");
    fails("{% set x = 'xxxxxxxxxxxxxxxx' * 65536 %}{% for i in range(1000) %}{{ x }}{% endfor %}", "");
    fails("{% include '/etc/passwd' %}", "");
}

/// Each of these would take gigabytes, or for ever, in a handful of instructions.
#[test]
fn hostile_templates_take_little_memory_before_they_end() {
    let sources = [
        "{% set ns = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[]) %}{% for i in range(100) %}{% set ns.x = ns.x + ['x' * 10000000] %}{% endfor %}",
        "{% set x %}{% for i in range(100000) %}{{ 'x' * 1000000 }}{% endfor %}{% endset %}",
        "{% macro m() %}{{ 'x' * 90000000 }}{% endmacro %}{% for i in range(100) %}{% set x = m() ~ m() %}{% endfor %}",
        "{{ ([[0] * 100000000] * 100000000) | tojson }}",
        "{{ ([[0] * 100000000] * 100000000) | tojson(indent=4, sort_keys=true) }}",
        "{{ ([[0] * 100000000] * 100000000) | list | length }}",
        "{{ [[0] * 100000000] * 100000000 }}",
        "{{ ([0] * 100000000) | sort | length }}",
        "{{ ('a,' * 40000000).split(',') | length }}",
        "{{ ('a ' * 40000000).split() | length }}",
        "{{ ('a\n' * 40000000).splitlines() | length }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) | length }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) | length }}",
        "{{ ('b' * 1000000).join('a' * 1000000) | length }}",
        "{{ '%2000000000d' | format(1) | length }}",
        "{{ '{:2000000000}'.format(1) | length }}",
        "{{ ('a\n' * 1000000) | indent(1000000) | length }}",
    ];
    for source in sources {
        let before = peak_kib();
        let error = render_with(source, &json!([]), &Map::new()).map(|text| text.len()).expect_err(source);
        let taken = peak_kib() - before;
        assert!(taken < 384 << 10, "{source} took {} MiB, then said {error}", taken >> 10);
    }
}

/// The most memory that this process has had resident; it only grows.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
