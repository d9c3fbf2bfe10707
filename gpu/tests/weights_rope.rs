//! Rope angles against transformers' formulas.
#![allow(clippy::panic, clippy::unwrap_used, reason = "a test's helpers fail by panicking")]

use relevo_gpu::description::{RopeDescription, RopeScaling, Yarn};
use serde_json::Value;

fn description(config: &Value) -> RopeDescription {
    let number = |value: &Value| value.as_f64();
    let scaling = &config["rope_scaling"];
    let given = |key: &str| number(&scaling[key]).unwrap();
    let optional = |key: &str| number(&scaling[key]);
    let factor = optional("factor").unwrap_or(1.0);
    let mscale = |mscale: f64| 1.0 + mscale * (Yarn::default_attention_factor(factor) - 1.0);
    let scaling = match scaling["rope_type"].as_str() {
        // Its factor begins to count beyond the context.
        None | Some("dynamic") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear { factor },
        Some("llama3") => RopeScaling::Llama3 {
            factor,
            low_frequency_factor: given("low_freq_factor"),
            high_frequency_factor: given("high_freq_factor"),
            original_context: given("original_max_position_embeddings"),
        },
        Some("yarn") => RopeScaling::Yarn(Yarn {
            factor,
            original_context: given("original_max_position_embeddings"),
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: scaling["truncate"].as_bool().unwrap_or(true),
            attention_factor: mscale(optional("mscale").unwrap_or(1.0))
                / optional("mscale_all_dim").map_or(1.0, mscale),
        }),
        Some(other) => panic!("{other}"),
    };
    let head_dim = number(&config["head_dim"]).unwrap();
    RopeDescription {
        theta: number(&config["rope_theta"]).unwrap(),
        rotary_dim: (head_dim * number(&config["partial_rotary_factor"]).unwrap_or(1.0)) as usize,
        interleaved: false,
        scaling,
    }
}

#[test]
fn every_scaling_gives_transformers_angles() {
    let path = format!("{}/tests/goldens/rope/rope.json", env!("CARGO_MANIFEST_DIR"));
    let cases: serde_json::Map<String, Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(cases.len(), 8);
    for (name, case) in &cases {
        let rope = description(&case["config"]);
        let expected: Vec<f64> = serde_json::from_value(case["inverse_frequencies"].clone()).unwrap();
        let found = rope.inverse_frequencies(None);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            // Half of f32's last place, and a little for the two formulas' own rounding.
            assert!(
                (f64::from(found) / expected - 1.0).abs() <= 6.1e-8,
                "{name}, pair {i}: {found} instead of {expected}"
            );
        }
        let attention_factor = case["attention_factor"].as_f64().unwrap();
        assert!((f64::from(rope.attention_factor()) - attention_factor).abs() < 1e-6, "{name}");
    }
}

#[test]
fn factors_of_a_tensor_divide_the_angles_one_by_one() {
    let rope = RopeDescription { theta: 10_000.0, rotary_dim: 4, interleaved: true, scaling: RopeScaling::None };
    assert_eq!(rope.inverse_frequencies(Some(&[2.0, 8.0])), [0.5, 0.01 / 8.0]);
}
