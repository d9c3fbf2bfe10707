//! Elementary functions: within their stated error of f64, and the same bits on every instruction set.

use proptest::prelude::*;
use relevo_gpu::cpu::Isa;
use relevo_gpu::cpu::math::{Function, map, sin_cos};

/// Distance in units of f32's relative precision, 2^-23.
fn relative_error(value: f32, expected: f64) -> f64 {
    ((f64::from(value) - expected) / expected).abs() * f64::from(1 << 23)
}

#[test]
fn exp_is_within_its_stated_error_over_its_whole_range() {
    let mut worst = 0.0f64;
    let mut x = -87.3f32;
    while x < 88.3 {
        let mut values = [x; 16];
        for value in &mut values {
            *value = x;
            x += 1.0 / 1_000.0 + x.abs() * 1e-6;
        }
        let arguments = values;
        map(Isa::detect(), &mut values, Function::Exp);
        for (value, argument) in values.into_iter().zip(arguments).filter(|(_, argument)| *argument < 88.3) {
            worst = worst.max(relative_error(value, f64::from(argument).exp()));
        }
    }
    assert!(worst <= 1.5, "exp is off by {worst} × 2^-23");
}

#[test]
fn exp_has_defined_ends() {
    for isa in Isa::available() {
        let mut values = [f32::NEG_INFINITY, -1e30, -87.4, 0.0, -0.0, 1e30, f32::INFINITY, f32::NAN];
        map(isa, &mut values, Function::Exp);
        assert_eq!(values[..5], [0.0, 0.0, 0.0, 1.0, 1.0]);
        assert!(
            values[5].is_finite() && values[5] > 2e38 && values[5] == values[6] && values[7].is_nan(),
            "{values:?}"
        );
    }
}

#[test]
fn sine_and_cosine_are_within_their_stated_error() {
    let mut worst = 0.0f64;
    for i in 0..400_000 {
        let angle = f64::from((f64::from(i) * 0.7).powf(1.1) as f32);
        let (sin, cos) = sin_cos(angle);
        worst = worst.max((sin - angle.sin()).abs()).max((cos - angle.cos()).abs());
    }
    assert!(worst <= 2f64.powi(-52), "off by {worst:e}");
}

proptest! {
    #[test]
    fn all_instruction_sets_agree_bit_for_bit(
        bits in prop::collection::vec(any::<u32>(), 0..70),
        small in prop::collection::vec(-100f32..100.0, 0..70),
        silu in any::<bool>(),
    ) {
        let function = if silu { Function::Silu } else { Function::Exp };
        for values in [bits.iter().map(|&bits| f32::from_bits(bits)).collect(), small] {
            let results = Isa::available().map(|isa| {
                let mut values: Vec<f32> = values.clone();
                map(isa, &mut values, function);
                values.iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect::<Vec<_>>()
            }).collect::<Vec<_>>();
            for other in &results[1..] {
                prop_assert_eq!(&results[0], other);
            }
        }
    }

    #[test]
    fn silu_is_close_to_its_definition(x in -80f32..80.0) {
        let mut value = [x];
        map(Isa::detect(), &mut value, Function::Silu);
        let expected = f64::from(x) / (1.0 + f64::from(-x).exp());
        prop_assert!(relative_error(value[0], expected) < 3.0 || (f64::from(value[0]) - expected).abs() < 1e-30);
    }
}
