//! Matrix products of the CPU: `out = epilogue(norm(x) · wᵀ + bias)`, weights quantised or float, any number of rows.
//!
//! The way of a product: a matrix is packed once ([`packed`], by [`layout`] and [`quant`]) into panels of 16 outputs that are read in one pass. A product first
//! prepares its rows ([`activations`]: RMSNorm, rounding to 8 bits), cut into tiles as high as a kernel's registers allow, then each thread takes its share of
//! the panels, multiplies each with all tiles ([`kernel`], one source for all instruction sets of [`vector`]) and finishes the columns ([`epilogue`]).
//! A row that is rounded twice is two rows to a kernel, side by side in its tile; the epilogue adds what they gave.
//!
//! **Invariant:** a row's result depends on that row and the weights: not on the other rows, the tile, the number of threads, or the instruction set. Threads split
//! outputs, never inputs; every sum is exact or in one fixed order.

#![allow(
    unsafe_code,
    reason = "kernels read packed weights by pointer, and threads write disjoint columns of one output"
)]

mod activations;
mod dispatch;
mod epilogue;
mod kernel;
mod layout;
mod lines;
mod packed;
mod probes;
mod quant;
mod vector;

use std::ops::Range;

pub(super) use lines::Lines;
pub use packed::PackedMatrix;
pub(super) use probes::{read_lines, run_dots};

use super::aligned::AlignedVec;
use super::isa::Isa;
use super::pool::{ThreadPool, share};
use crate::compute::{ComputeError, Epilogue, Rounding};
use activations::{Strided, Terms, write_f32, write_int8};
use dispatch::{kernel, tiles};
use epilogue::{Columns, Products, finish};
use kernel::{ActivationBlock, PanelRun};
use packed::Segment;
use quant::{BLOCK, PANEL_ROWS};

/// Rows up to which every thread prepares all of them for itself: about half a microsecond a row, where a join of the threads costs as much.
const PREPARE_ALONE: usize = 4;

/// Floats of the products that wait for their epilogue: 4 KiB, a small part of the first-level cache.
const PRODUCTS: usize = 1024;

/// Tiles up to which a run of panels is multiplied with all of them at once: their activations stay in the first or second level.
const FEW_TILES: usize = 4;

/// Bytes of panels that are multiplied with every tile before the next ones are read, when tiles are many: a quarter of a 1 MiB second level.
const PANEL_GROUP_BYTES: usize = 256 << 10;

/// What is multiplied.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// `[num_rows, num_inputs]`, row-major.
    pub x: &'a [f32],
    /// RMSNorm of each row first: weight `[num_inputs]` and epsilon.
    pub norm: Option<(&'a [f32], f32)>,
}

/// What it is multiplied with, and what then.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// The weights.
    pub weight: &'a PackedMatrix,
    /// Added to each row, `[num_outputs]`; for gate and up `[2 * num_outputs]`, the gate's first.
    pub bias: Option<&'a [f32]>,
    /// What happens to the product.
    pub epilogue: Epilogue,
    /// How the rows are rounded.
    pub rounding: Rounding,
}

impl Product<'_> {
    /// Rows that a kernel takes for one of the input.
    fn num_terms(&self) -> usize {
        let is_rounded = self.weight.segments().iter().all(|part| self.weight.takes_int8(part.ty));
        if is_rounded { self.rounding.num_terms() } else { 1 }
    }
}

/// Memory that products work in; grows to the largest one and is kept by the caller.
#[derive(Default)]
pub struct Scratch {
    memory: AlignedVec,
}

impl Scratch {
    fn reserve(&mut self, shape: &Shape) -> Result<(), ComputeError> {
        self.memory.grow(shape.scratch_bytes() / size_of::<f32>(), "the rows of a matrix product")
    }
}

/// Multiplies on all threads of `pool`. `out`: `[num_rows, num_outputs]`, row-major.
///
/// # Errors
/// Transient: `scratch` is too small, and memory for more is short.
///
/// # Panics
/// Our bug: the lengths of `input`, `product` and `out` do not fit each other, or [`Epilogue::SiluMul`] does not meet a gate and up projection.
pub fn matmul(
    pool: &ThreadPool,
    isa: Isa,
    input: Input<'_>,
    product: Product<'_>,
    out: &mut [f32],
    scratch: &mut Scratch,
) -> Result<(), ComputeError> {
    let num_rows = check_lengths(&input, &product, out);
    if num_rows == 0 {
        return Ok(());
    }
    let num_inputs = product.weight.num_inputs();
    let shape = Shape { num_rows, num_inputs, num_threads: pool.num_threads(), num_terms: product.num_terms() };
    scratch.reserve(&shape)?;
    let job = Job {
        isa,
        input,
        product,
        shape,
        scratch: scratch.memory.as_mut_slice().as_mut_ptr().cast(),
        out: out.as_mut_ptr(),
    };
    if shape.prepares_alone() {
        pool.run(|thread_index, num_threads| {
            // SAFETY: each thread has a region of the scratch, and columns of the output, of its own.
            unsafe {
                let own = job.region(thread_index);
                job.prepare(0..num_rows, own);
                job.multiply((thread_index, num_threads), own);
            }
        });
    } else {
        // SAFETY: threads prepare different rows in the one region.
        pool.run(|thread_index, num_threads| unsafe {
            job.prepare(share(num_rows, 1, (thread_index, num_threads)), job.region(0));
        });
        // SAFETY: all rows are prepared, and each thread has columns of its own.
        pool.run(|thread_index, num_threads| unsafe { job.multiply((thread_index, num_threads), job.region(0)) });
    }
    Ok(())
}

/// The number of rows, if all lengths fit it.
fn check_lengths(input: &Input<'_>, product: &Product<'_>, out: &[f32]) -> usize {
    let weight = product.weight;
    let num_rows = input.x.len() / weight.num_inputs();
    assert_eq!(input.x.len(), num_rows * weight.num_inputs(), "x holds whole rows");
    assert_eq!(out.len(), num_rows * weight.num_outputs(), "out holds as many rows as x");
    assert_eq!(product.epilogue == Epilogue::SiluMul, weight.is_gate_up(), "SiluMul goes with gate and up");
    let num_biases = weight.num_outputs() * if weight.is_gate_up() { 2 } else { 1 };
    assert!(product.bias.is_none_or(|bias| bias.len() == num_biases), "a bias for each output");
    assert!(input.norm.is_none_or(|(norm, _)| norm.len() == weight.num_inputs()), "a norm weight for each input");
    num_rows
}

/// How a product's rows lie in the scratch: a region of 8-bit blocks and one of f32, each by tiles.
#[derive(Clone, Copy)]
struct Shape {
    num_rows: usize,
    num_inputs: usize,
    num_threads: usize,
    /// Of a row, if it is rounded.
    num_terms: usize,
}

impl Shape {
    fn prepares_alone(&self) -> bool {
        self.num_threads == 1 || self.num_rows <= PREPARE_ALONE
    }

    /// Bytes of one region of 8-bit blocks; the last tile may be up to four rows higher than it needs to be.
    fn int8_bytes(&self) -> usize {
        let blocks = self.num_inputs.div_ceil(BLOCK) * (self.num_rows * self.num_terms + TILE_SLACK);
        (blocks * size_of::<ActivationBlock>()).next_multiple_of(Lines::LINE)
    }

    fn f32_bytes(&self) -> usize {
        (self.num_inputs * (self.num_rows + TILE_SLACK) * size_of::<f32>()).next_multiple_of(Lines::LINE)
    }

    fn region_bytes(&self) -> usize {
        self.int8_bytes() + self.f32_bytes()
    }

    fn scratch_bytes(&self) -> usize {
        self.region_bytes() * if self.prepares_alone() { self.num_threads } else { 1 }
    }
}

/// Most rows of a kernel that a tile exceeds those left.
const TILE_SLACK: usize = 4;

/// The tiles that a product's rows are cut into: (first row, height); the last may be higher than the rows left.
fn cut(isa: Isa, Shape { num_rows, num_terms, .. }: Shape) -> impl Iterator<Item = (usize, usize)> {
    let whole_rows = move |height: &&usize| height.is_multiple_of(num_terms);
    let heights = move || tiles(isa).iter().filter(whole_rows).map(move |height| height / num_terms);
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = num_rows - first;
        let height = heights().find(|&height| height >= left).or(heights().next_back())?;
        let tile = (first, height);
        first += height.min(left);
        (left > 0).then_some(tile)
    })
}

/// One product, as its threads share it.
#[derive(Clone, Copy)]
struct Job<'a> {
    isa: Isa,
    input: Input<'a>,
    product: Product<'a>,
    shape: Shape,
    scratch: *mut u8,
    out: *mut f32,
}

// SAFETY: threads of a run read the input and the weights, and write regions of the scratch and columns of the output that do not overlap.
unsafe impl Sync for Job<'_> {}

impl Job<'_> {
    /// A region of the scratch.
    ///
    /// # Safety
    /// The scratch has that many.
    unsafe fn region(&self, index: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.scratch.add(index * self.shape.region_bytes()) }
    }

    /// The activations that a segment takes, of the tile that begins with row `first_row`.
    ///
    /// # Safety
    /// `region` is one.
    unsafe fn tile_activations(&self, region: *mut u8, int8: bool, first_row: usize) -> *mut u8 {
        let Shape { num_inputs, num_terms, .. } = self.shape;
        // SAFETY: rows lie in order in both halves of a region.
        unsafe {
            if int8 {
                region.cast::<ActivationBlock>().add(first_row * num_terms * (num_inputs / BLOCK)).cast()
            } else {
                region.add(self.shape.int8_bytes()).cast::<f32>().add(first_row * num_inputs).cast()
            }
        }
    }

    /// Normalises and rounds rows into a region.
    ///
    /// # Safety
    /// `region` is one, and no other thread touches these rows of it.
    unsafe fn prepare(&self, rows: Range<usize>, region: *mut u8) {
        let num_inputs = self.shape.num_inputs;
        let weight = self.product.weight;
        let kinds = [true, false].map(|int8| weight.segments().iter().any(|part| weight.takes_int8(part.ty) == int8));
        for (first_row, tile) in cut(self.isa, self.shape) {
            for row in rows.start.max(first_row)..rows.end.min(first_row + tile) {
                let x = &self.input.x[row * num_inputs..][..num_inputs];
                // SAFETY: row `row - first_row` of its tile, inside the region.
                unsafe {
                    if kinds[0] {
                        let to = self.tile_activations(region, true, first_row);
                        match self.shape.num_terms {
                            1 => self.round::<1>(x, to, (row - first_row, tile)),
                            _ => self.round::<2>(x, to, (row - first_row, tile)),
                        }
                    }
                    if kinds[1] {
                        let to = self.tile_activations(region, false, first_row).cast::<f32>();
                        let mut to = Strided::new(to.add(row - first_row), tile, num_inputs);
                        write_f32(self.isa, (x, self.input.norm), &mut to);
                    }
                }
            }
        }
    }

    /// Normalises and rounds the row `index` of a tile of `height` rows.
    ///
    /// # Safety
    /// `tile` has room for that many rows of `TERMS` terms, and no other thread touches this one.
    unsafe fn round<const TERMS: usize>(&self, x: &[f32], tile: *mut u8, (index, height): (usize, usize)) {
        // SAFETY: the caller's promise.
        let mut to = unsafe { Strided::new(tile.cast::<Terms<TERMS>>().add(index), height, x.len() / BLOCK) };
        write_int8(self.isa, (x, self.input.norm), &mut to);
    }

    /// Multiplies one thread's share of the panels with all rows.
    ///
    /// # Safety
    /// All rows are prepared in `region`, and no other thread has this share.
    unsafe fn multiply(&self, thread: (usize, usize), region: *mut u8) {
        let mut worker = Worker::new(region);
        let segments = self.product.weight.segments();
        if self.product.weight.is_gate_up() {
            let panels = panel_share(&segments[..1], 0, thread);
            // SAFETY: the caller's promise.
            unsafe { self.multiply_panels(&segments[0], Some(&segments[1]), panels, &mut worker) };
            return;
        }
        for (index, segment) in segments.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { self.multiply_panels(segment, None, panel_share(segments, index, thread), &mut worker) };
        }
    }

    /// Multiplies consecutive panels of one part (and of the up projection beside it).
    ///
    /// # Safety
    /// As [`Job::multiply`].
    unsafe fn multiply_panels(&self, part: &Segment, up: Option<&Segment>, panels: Range<usize>, worker: &mut Worker) {
        worker.share_end = panels.end;
        let most_tile = cut(self.isa, self.shape).next().map_or(1, |(_, tile)| tile);
        let few = PRODUCTS / (most_tile * self.shape.num_terms * PANEL_ROWS);
        let many_tiles = self.shape.num_rows > FEW_TILES * most_tile;
        let group = if many_tiles { few.max(PANEL_GROUP_BYTES / part.stride) } else { few };
        for group_start in panels.clone().step_by(group) {
            let group_end = panels.end.min(group_start + group);
            for tile in cut(self.isa, self.shape) {
                for start in (group_start..group_end).step_by(few) {
                    // SAFETY: the caller's promise.
                    unsafe { self.multiply_tile((part, up), start..group_end.min(start + few), tile, worker) };
                }
            }
        }
    }

    /// Multiplies at most [`PRODUCTS`] worth of panels with one tile, and finishes them.
    ///
    /// # Safety
    /// As [`Job::multiply`].
    unsafe fn multiply_tile(
        &self,
        (part, up): (&Segment, Option<&Segment>),
        panels: Range<usize>,
        tile: (usize, usize),
        worker: &mut Worker,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            self.run_kernel(part, panels.clone(), tile, worker, 0);
            if let Some(up) = up {
                self.run_kernel(up, panels.clone(), tile, worker, 1);
            }
        }
        let [products, up_products] = &worker.products;
        let ((first_row, height), num_terms) = (tile, self.shape.num_terms);
        let num_outputs = self.product.weight.num_outputs();
        for (index, panel) in panels.enumerate() {
            let column = part.column + panel * PANEL_ROWS;
            let width = PANEL_ROWS.min(part.num_outputs - panel * PANEL_ROWS);
            let bias = |column: usize| self.product.bias.map(|bias| &bias[column..column + width]);
            let rows = index * height * num_terms..(index + 1) * height * num_terms;
            let product = Products { rows: &products.0[rows.clone()], num_terms, bias: bias(column) };
            let up_bias = up.and_then(|_| bias(num_outputs + column));
            let up_product = Products { rows: &up_products.0[rows], num_terms, bias: up_bias };
            // SAFETY: inside the output, and these columns are this thread's.
            let mut out = unsafe {
                let first = self.out.add(first_row * num_outputs + column);
                Columns::new(first, num_outputs, height.min(self.shape.num_rows - first_row), width)
            };
            finish(self.isa, &mut out, product, up_product, self.product.epilogue);
        }
    }

    /// Multiplies panels of one part with one tile; the products go to `worker.products[waiting_index]`.
    ///
    /// # Safety
    /// As [`Job::multiply`].
    unsafe fn run_kernel(
        &self,
        part: &Segment,
        panels: Range<usize>,
        (first_row, height): (usize, usize),
        worker: &mut Worker,
        waiting_index: usize,
    ) {
        let products = &mut worker.products[waiting_index].0;
        let int8 = self.product.weight.takes_int8(part.ty);
        let run = PanelRun {
            panels: self.product.weight.bytes()[part.offset + panels.start * part.stride..].as_ptr(),
            stride: part.stride,
            num_panels: panels.len(),
            num_inputs: self.shape.num_inputs,
            to_next_run: if panels.end < worker.share_end { panels.len() * part.stride } else { 0 },
            // SAFETY: the caller's promise.
            activations: unsafe { self.tile_activations(worker.region, int8, first_row) },
            out: products.as_mut_ptr().cast(),
        };
        let height = height * self.shape.num_terms;
        assert!(panels.len() * height <= products.len(), "products fit");
        // SAFETY: the kernel is this `isa`'s; the panels lie in the matrix, the tile in the region, and the results fit.
        unsafe { kernel(self.isa, part.ty, int8, height)(&run) };
    }
}

/// What a thread works in.
struct Worker {
    /// The prepared rows.
    region: *mut u8,
    /// Where its panels of the part at hand end.
    share_end: usize,
    /// Products that wait for their epilogue, and those of the up projection.
    products: [Waiting; 2],
}

/// `[num_panels, tile, num_terms, 16]`.
#[repr(align(64))]
struct Waiting([[f32; PANEL_ROWS]; PRODUCTS / PANEL_ROWS]);

impl Worker {
    fn new(region: *mut u8) -> Self {
        Self { region, share_end: 0, products: [const { Waiting([[0.0; PANEL_ROWS]; PRODUCTS / PANEL_ROWS]) }; 2] }
    }
}

/// The panels of part `index` that one thread takes, so that all threads read about as many bytes of all parts.
fn panel_share(parts: &[Segment], index: usize, (thread_index, num_threads): (usize, usize)) -> Range<usize> {
    let bytes = |parts: &[Segment]| parts.iter().map(|part| part.num_panels() * part.stride).sum::<usize>();
    let (total, before, part) = (bytes(parts), bytes(&parts[..index]), &parts[index]);
    let bound = |thread_index: usize| {
        let at = (total / Lines::LINE * thread_index / num_threads * Lines::LINE).saturating_sub(before);
        if thread_index == num_threads { part.num_panels() } else { at.div_ceil(part.stride).min(part.num_panels()) }
    };
    bound(thread_index)..bound(thread_index + 1)
}
