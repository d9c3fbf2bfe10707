//! Matrix products against the stated formulas, bit for bit, for every type, instruction set and number of rows.

#![allow(clippy::unwrap_used, reason = "a test's helper fails like the test")]

mod encoded;
mod reference;

use encoded::{Encoded, Random};
use proptest::prelude::*;
use relevo_gpu::compute::{Epilogue, Rounding};
use relevo_gpu::cpu::matmul::{Input, PackedMatrix, Product, Scratch, matmul};
use relevo_gpu::cpu::{Isa, ThreadPool};
use relevo_gpu::weights::TensorType;
use relevo_wire::Numerics;

const TYPES: [TensorType; 11] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// How exactly a product is computed: [`ROUNDED_TWICE`] and the like.
type Manner = (Numerics, Rounding);

const ROUNDED_ONCE: Manner = (Numerics::Default, Rounding::Once);
const ROUNDED_TWICE: Manner = (Numerics::Default, Rounding::Twice);
/// No rounding is done, though one is asked for.
const EXACT: Manner = (Numerics::Exact, Rounding::Twice);

const MANNERS: [Manner; 3] = [ROUNDED_ONCE, ROUNDED_TWICE, EXACT];

/// Inputs that are odd for a type: a whole number of its blocks, and neither a power of two nor a whole number of records.
fn odd_inputs(ty: TensorType) -> usize {
    match ty.block().0 {
        1 => 77,
        32 => 3 * 32,
        block => 3 * block,
    }
}

struct Bench {
    pool: ThreadPool,
    scratch: Scratch,
}

impl Bench {
    fn new(num_threads: usize) -> Self {
        Self { pool: ThreadPool::new(num_threads, false).unwrap(), scratch: Scratch::default() }
    }

    fn multiply(&mut self, isa: Isa, input: Input<'_>, product: Product<'_>, out: &mut [f32]) {
        matmul(&self.pool, isa, input, product, out, &mut self.scratch).unwrap();
    }

    fn store(&mut self, isa: Isa, x: &[f32], (weight, rounding): (&PackedMatrix, Rounding)) -> Vec<f32> {
        let mut out = vec![f32::NAN; x.len() / weight.num_inputs() * weight.num_outputs()];
        let product = Product { weight, bias: None, epilogue: Epilogue::Store, rounding };
        self.multiply(isa, Input { x, norm: None }, product, &mut out);
        out
    }
}

/// `[rows, outputs]` by the stated formula.
fn expected(x: &[f32], w: &Encoded, manner: Manner) -> Vec<f32> {
    let dot = match manner {
        _ if w.is_float() => reference::float_dot,
        (Numerics::Exact, _) => reference::float_dot,
        (Numerics::Default, Rounding::Once) => reference::int8_dot,
        (Numerics::Default, Rounding::Twice) => reference::two_int8_dots,
    };
    x.chunks(w.shape[1]).flat_map(|row| (0..w.shape[0]).map(move |output| dot(row, w, output))).collect()
}

/// `[rows, outputs]` of stacked parts; one that is not quantised keeps them all from being rounded twice.
fn expected_of_parts(x: &[f32], parts: &[Encoded], (numerics, rounding): Manner) -> Vec<f32> {
    let rounding = if parts.iter().any(Encoded::is_float) { Rounding::Once } else { rounding };
    let of_row = |row| parts.iter().flat_map(move |part| expected(row, part, (numerics, rounding)));
    x.chunks(parts[0].shape[1]).flat_map(of_row).collect()
}

fn assert_same_bits(actual: &[f32], expected: &[f32], what: &str) {
    assert_eq!(actual.len(), expected.len(), "{what}: length");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert_eq!(a.to_bits(), e.to_bits(), "{what}: element {i} is {a}, expected {e}");
    }
}

#[test]
fn every_type_instruction_set_and_number_of_rows_gives_the_stated_formula() {
    let mut bench = Bench::new(2);
    for ty in TYPES {
        let mut random = Random(0x5eed + ty as u64);
        let w = Encoded::random(ty, 37, odd_inputs(ty), &mut random);
        let k = w.shape[1];
        let x = random.floats(100 * k);
        for manner in MANNERS {
            let packed = PackedMatrix::pack(&[w.view()], manner.0).unwrap();
            let expected = expected(&x, &w, manner);
            for isa in Isa::available() {
                for rows in (1..=40).chain([64, 100]) {
                    let actual = bench.store(isa, &x[..rows * k], (&packed, manner.1));
                    assert_same_bits(&actual, &expected[..rows * 37], &format!("{ty:?} {manner:?} {isa} {rows} rows"));
                }
            }
        }
    }
}

/// A product with everything around it, one number at a time: `products` are `[rows, outputs]`.
fn finished(products: &[f32], bias: Option<&[f32]>, residual: Option<&[f32]>, num_outputs: usize) -> Vec<f32> {
    let biased = products.iter().enumerate().map(|(i, y)| bias.map_or(*y, |bias| y + bias[i % num_outputs]));
    biased.enumerate().map(|(i, y)| residual.map_or(y, |residual| residual[i] + y)).collect()
}

#[test]
fn parts_of_different_types_are_stacked_and_normed_biased_and_added() {
    for second in [TensorType::F16, TensorType::Q5_1] {
        check_stacked([(TensorType::Q4_K, 40), (second, 19), (TensorType::Q6_K, 5), (TensorType::Q8_0, 16)]);
    }
}

fn check_stacked(parts: [(TensorType, usize); 4]) {
    let mut bench = Bench::new(2);
    let mut random = Random(7);
    let k = 512;
    let num_outputs = parts.iter().map(|(_, n)| n).sum();
    let parts = parts.map(|(ty, n)| Encoded::random(ty, n, k, &mut random));
    let (x, norm) = (random.floats(9 * k), random.floats(k));
    let (bias, residual) = (random.floats(num_outputs), random.floats(9 * num_outputs));
    let normed: Vec<f32> = x.chunks(k).flat_map(|row| reference::rms_norm(row, &norm, 1e-5)).collect();
    for manner in MANNERS {
        let packed = PackedMatrix::pack(&parts.each_ref().map(Encoded::view), manner.0).unwrap();
        let products = expected_of_parts(&normed, &parts, manner);
        for isa in Isa::available() {
            for (bias, epilogue) in
                [(None, Epilogue::Store), (Some(&*bias), Epilogue::Store), (Some(&*bias), Epilogue::Add)]
            {
                let mut out = residual.clone();
                let input = Input { x: &x, norm: Some((&norm, 1e-5)) };
                bench.multiply(isa, input, Product { weight: &packed, bias, epilogue, rounding: manner.1 }, &mut out);
                let residual = (epilogue == Epilogue::Add).then_some(&*residual);
                let expected = finished(&products, bias, residual, num_outputs);
                assert_same_bits(&out, &expected, &format!("{manner:?} {isa} {epilogue:?}"));
            }
        }
    }
}

#[test]
fn gate_and_up_are_joined_by_silu() {
    let mut bench = Bench::new(2);
    let mut random = Random(11);
    let k = 256;
    for (gate_ty, up_ty, manner) in [
        (TensorType::Q4_1, TensorType::Q4_1, ROUNDED_ONCE),
        (TensorType::Q4_1, TensorType::Q5_0, ROUNDED_TWICE),
        (TensorType::Q4_K, TensorType::F32, ROUNDED_ONCE),
    ] {
        let [gate, up] = [gate_ty, up_ty].map(|ty| Encoded::random(ty, 35, k, &mut random));
        let x = random.floats(18 * k);
        let bias = random.floats(70);
        let packed = PackedMatrix::pack_gate_up(&gate.view(), &up.view(), Numerics::Default).unwrap();
        let [gates, ups] = [(&gate, &bias[..35]), (&up, &bias[35..])]
            .map(|(w, bias)| finished(&expected(&x, w, manner), Some(bias), None, 35));
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut out = vec![0.0; 18 * 35];
            let (bias, rounding) = (Some(&*bias), manner.1);
            let product = Product { weight: &packed, bias, epilogue: Epilogue::SiluMul, rounding };
            bench.multiply(isa, Input { x: &x, norm: None }, product, &mut out);
            for ((gate, up), out) in gates.iter().zip(&ups).zip(&out) {
                let gate = f64::from(*gate);
                let expected = gate / (1.0 + (-gate).exp()) * f64::from(*up);
                assert!(
                    (f64::from(*out) - expected).abs() <= 1e-6 * (1.0 + expected.abs()),
                    "{out}, expected {expected}"
                );
            }
            assert_same_bits(&out, first.get_or_insert_with(|| out.clone()), isa.name());
        }
    }
}

#[test]
fn a_row_of_a_packed_matrix_is_dequantised_exactly() {
    for ty in TYPES {
        let mut random = Random(23 + ty as u64);
        let parts = [18, 21].map(|n| Encoded::random(ty, n, odd_inputs(ty), &mut random));
        let packed = PackedMatrix::pack(&parts.each_ref().map(Encoded::view), Numerics::Default).unwrap();
        let k = packed.num_inputs();
        for row in 0..39 {
            let mut out = vec![f32::NAN; k];
            packed.embed_row(row, &mut out);
            let (part, row) = if row < 18 { (&parts[0], row) } else { (&parts[1], row - 18) };
            assert_same_bits(&out, &part.weights[row * k..][..k], &format!("{ty:?} row {row}"));
        }
    }
}

#[test]
fn rounded_activations_stay_close_to_real_numbers() {
    let mut bench = Bench::new(1);
    for ty in TYPES {
        let mut random = Random(41 + ty as u64);
        let w = Encoded::random(ty, 20, 768, &mut random);
        let x = random.floats(768);
        for (manner, tolerance) in [(ROUNDED_ONCE, 0.01), (ROUNDED_TWICE, 1e-5), (EXACT, 2e-6)] {
            let packed = PackedMatrix::pack(&[w.view()], manner.0).unwrap();
            let actual = bench.store(Isa::detect(), &x, (&packed, manner.1));
            for (output, actual) in actual.iter().enumerate() {
                let expected = reference::exact_dot(&x, &w, output);
                let norm = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                let size = norm(&x) * norm(&w.weights[output * 768..][..768]);
                let error = (f64::from(*actual) - expected).abs();
                assert!(error <= tolerance * size, "{ty:?} {manner:?}: {actual}, expected {expected}");
            }
        }
    }
}

#[test]
fn numbers_half_way_between_two_codes_become_the_even_one() {
    let mut bench = Bench::new(1);
    let w = Encoded::random(TensorType::Q8_0, 16, 64, &mut Random(47));
    let packed = PackedMatrix::pack(&[w.view()], Numerics::Default).unwrap();
    // A block's largest of 127 makes its scale 1: halves lie between two codes, on either side of nought.
    let x: Vec<f32> = (0..64u8).map(|i| if i % 32 == 0 { 127.0 } else { f32::from(i) - 31.5 }).collect();
    let expected = expected(&x, &w, ROUNDED_ONCE);
    for isa in Isa::available() {
        assert_same_bits(&bench.store(isa, &x, (&packed, Rounding::Once)), &expected, isa.name());
    }
}

#[test]
fn rows_of_nothing_large_numbers_and_no_number_do_not_disturb_their_neighbours() {
    let mut bench = Bench::new(2);
    let mut random = Random(43);
    let w = Encoded::random(TensorType::Q4_1, 16, 64, &mut random);
    let packed = PackedMatrix::pack(&[w.view()], Numerics::Default).unwrap();
    let good = random.floats(64);
    for rounding in [Rounding::Once, Rounding::Twice] {
        let alone = bench.store(Isa::detect(), &good, (&packed, rounding));
        let odd = [0.0, 1e-38, 1e34, f32::INFINITY, f32::NAN];
        for (odd, isa) in odd.into_iter().flat_map(|odd| Isa::available().map(move |isa| (odd, isa))) {
            let mut x = good.repeat(3);
            x[64..128].fill(odd);
            let out = bench.store(isa, &x, (&packed, rounding));
            assert_same_bits(&out[..16], &alone, "the row before");
            assert_same_bits(&out[32..], &alone, "the row after");
            assert_eq!(out[16..32].iter().all(|y| y.is_finite()), odd.is_finite(), "{odd} {isa}: {:?}", &out[16..32]);
        }
    }
}

#[test]
fn parts_that_do_not_fit_are_refused_with_their_name() {
    let mut random = Random(3);
    let w = Encoded::random(TensorType::Q4_1, 4, 64, &mut random);
    let other = Encoded::random(TensorType::Q4_1, 4, 96, &mut random);
    let refused = |parts: &[relevo_gpu::weights::TensorView<'_>]| {
        PackedMatrix::pack(parts, Numerics::Default).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&[w.view(), other.view()]), "tensor test.weight: 96 inputs, expected 64 as in the part before");
    let mut view = w.view();
    view.shape = &[4, 60];
    assert_eq!(refused(&[view]), "tensor test.weight: 60 inputs, expected a multiple of 32 (Q4_1)");
    view.shape = &[5, 64];
    assert_eq!(refused(&[view]), "tensor test.weight: 160 bytes for the shape [5, 64]");
    view.shape = &[256];
    assert_eq!(refused(&[view]), "tensor test.weight: its shape is [256], expected two dimensions");
    let (gate, mut up) = (w.view(), w.view());
    (up.shape, up.data) = (&[2, 64], &w.bytes[..80]);
    let error = PackedMatrix::pack_gate_up(&gate, &up, Numerics::Default).err().unwrap().to_string();
    assert_eq!(error, "tensor test.weight: it has 2 outputs, its gate 4");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn threads_instruction_sets_and_other_rows_do_not_change_a_row(
        ty in (0..TYPES.len()).prop_map(|index| TYPES[index]),
        manner in (0..MANNERS.len()).prop_map(|index| MANNERS[index]),
        num_outputs in 1usize..200,
        blocks in 1usize..5,
        num_rows in 1usize..40,
        num_threads in 1usize..6,
        seed in 1u64..,
    ) {
        let mut random = Random(seed);
        let k = blocks * ty.block().0 + if ty.block().0 == 1 { 30 } else { 0 };
        let w = Encoded::random(ty, num_outputs, k, &mut random);
        let packed = PackedMatrix::pack(&[w.view()], manner.0).unwrap();
        let weight = (&packed, manner.1);
        let x = random.floats(num_rows * k);
        let last = last_row_alone(&x, weight);
        let mut bench = Bench::new(num_threads);
        for isa in Isa::available() {
            let out = bench.store(isa, &x, weight);
            assert_same_bits(&out[(num_rows - 1) * num_outputs..], &last, isa.name());
        }
    }
}

/// The last row's products, alone, by the portable kernels on one thread.
fn last_row_alone(x: &[f32], weight: (&PackedMatrix, Rounding)) -> Vec<f32> {
    let isa = Isa::available().last().unwrap();
    Bench::new(1).store(isa, &x[x.len() - weight.0.num_inputs()..], weight)
}
