//! What happens to a product: stored, added to the residual, or joined by SiLU · up.

use super::quant::PANEL_ROWS;
use crate::compute::Epilogue;
use crate::cpu::math::silu;
use crate::cpu::simd::{Lanes, multiversion};

/// The columns of one panel in some rows of the output.
pub(super) struct Columns {
    first: *mut f32,
    row_stride: usize,
    num_rows: usize,
    width: usize,
}

impl Columns {
    /// # Safety
    /// `width` floats of each of `num_rows` rows, `row_stride` apart from `first` on, can be read and written, and nobody else touches them while
    /// this lives.
    pub(super) unsafe fn new(first: *mut f32, row_stride: usize, num_rows: usize, width: usize) -> Self {
        Self { first, row_stride, num_rows, width }
    }

    #[inline(always)]
    fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.num_rows, "row {row} of {}", self.num_rows);
        // SAFETY: the promise made to `new`.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.row_stride), self.width) }
    }
}

/// Products of one panel and their bias, if they have one.
#[derive(Clone, Copy)]
pub(super) struct Products<'a> {
    /// `num_terms` for each row of the output, or more.
    pub(super) rows: &'a [[f32; PANEL_ROWS]],
    /// Terms of a row, one or two: their sum, in order, is its product.
    pub(super) num_terms: usize,
    /// As wide as the columns.
    pub(super) bias: Option<&'a [f32]>,
}

impl Products<'_> {
    /// `TERMS` is `num_terms`, known when compiled: this is called for every 16 numbers of every product.
    #[inline(always)]
    fn biased<V: Lanes, const TERMS: usize>(&self, row: usize) -> V {
        let mut product = V::load(&self.rows[row * TERMS]);
        for term in 1..TERMS {
            product = product.add(V::load(&self.rows[row * TERMS + term]));
        }
        self.bias.map_or(product, |bias| product.add(load(bias)))
    }
}

multiversion! {
    /// Finishes the products of one panel; `up`: those of the up projection, for [`Epilogue::SiluMul`].
    pub(super) fn finish(out: &mut Columns, products: Products<'_>, up: Products<'_>, epilogue: Epilogue) = finish_generic
}

#[inline(always)]
fn finish_generic<V: Lanes>(out: &mut Columns, products: Products<'_>, up: Products<'_>, epilogue: Epilogue) {
    match products.num_terms {
        1 => finish_rows::<V, 1>(out, products, up, epilogue),
        _ => finish_rows::<V, 2>(out, products, up, epilogue),
    }
}

#[inline(always)]
fn finish_rows<V: Lanes, const TERMS: usize>(
    out: &mut Columns,
    products: Products<'_>,
    up: Products<'_>,
    epilogue: Epilogue,
) {
    for row in 0..out.num_rows {
        let product: V = products.biased::<V, TERMS>(row);
        let out = out.row(row);
        let y = match epilogue {
            Epilogue::Store => product,
            Epilogue::Add => load::<V>(out).add(product),
            Epilogue::SiluMul => silu(product).mul(up.biased::<V, TERMS>(row)),
        };
        match out.as_mut_array() {
            Some(whole) => y.store(whole),
            None => y.store_part(out),
        }
    }
}

#[inline(always)]
fn load<V: Lanes>(from: &[f32]) -> V {
    match from.as_array() {
        Some(whole) => V::load(whole),
        None => V::load_part(from),
    }
}
