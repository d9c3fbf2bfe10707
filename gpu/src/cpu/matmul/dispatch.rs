//! From an instruction set, a type and a tile to the function compiled for them.

use super::kernel::{BF16, Dequantised, F16, F32, Float, Int8, PanelKind, PanelRun, run_panels};
use super::quant::{PANEL_ROWS, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Quant};
use super::vector::Portable;
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use crate::cpu::isa::Isa;
use crate::weights::TensorType;

/// Multiplies panels with a tile.
///
/// # Safety
/// The processor has the instruction set that the kernel was chosen for, and the pointers of the run hold what its fields say.
pub(super) type Kernel = unsafe fn(&PanelRun);

/// Rows that a kernel takes at once, fewest first. The sums of a tile, a block's eight code registers and its scales fit the register file up to 16 rows
/// of AVX-512, 4 of AVX2; each height costs a body of every kernel in the program, so there are no more than serve.
pub(super) fn tiles(isa: Isa) -> &'static [usize] {
    match isa {
        Isa::Avx512Vnni => &[1, 2, 4, 8, 12, 16],
        Isa::Avx2 => &[1, 2, 4],
        Isa::Portable => &[1, 4],
    }
}

/// The kernel for weights of type `ty`, activations in 8 bits or f32, and a tile of [`tiles`].
pub(super) fn kernel(isa: Isa, ty: TensorType, int8: bool, tile: usize) -> Kernel {
    fn quantised<Q: Quant>(isa: Isa, int8: bool, tile: usize) -> Kernel {
        if int8 { of_kind::<Int8<Q>>(isa, tile) } else { of_kind::<Dequantised<Q>>(isa, tile) }
    }
    match ty {
        TensorType::F32 => of_kind::<Float<F32>>(isa, tile),
        TensorType::F16 => of_kind::<Float<F16>>(isa, tile),
        TensorType::BF16 => of_kind::<Float<BF16>>(isa, tile),
        TensorType::Q4_0 => quantised::<Q4_0>(isa, int8, tile),
        TensorType::Q4_1 => quantised::<Q4_1>(isa, int8, tile),
        TensorType::Q5_0 => quantised::<Q5_0>(isa, int8, tile),
        TensorType::Q5_1 => quantised::<Q5_1>(isa, int8, tile),
        TensorType::Q8_0 => quantised::<Q8_0>(isa, int8, tile),
        TensorType::Q4_K => quantised::<Q4K>(isa, int8, tile),
        TensorType::Q5_K => quantised::<Q5K>(isa, int8, tile),
        TensorType::Q6_K => quantised::<Q6K>(isa, int8, tile),
    }
}

fn of_kind<K: PanelKind>(isa: Isa, tile: usize) -> Kernel {
    match (isa, tile) {
        // Two panels at once share the loads of activations: 5 % at 16 rows. Lower tiles wait for memory.
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Vnni, tile) => match tile {
            1 => avx512::<K, 1, 1>,
            2 => avx512::<K, 1, 2>,
            4 => avx512::<K, 1, 4>,
            8 => avx512::<K, 1, 8>,
            12 => avx512::<K, 2, 12>,
            _ => avx512::<K, 2, 16>,
        },
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, tile) => match tile {
            1 => avx2::<K, 1>,
            2 => avx2::<K, 2>,
            _ => avx2::<K, 4>,
        },
        (_, 1) => portable::<K, 1>,
        (_, _) => portable::<K, 4>,
    }
}

/// # Safety
/// As [`Kernel`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
unsafe fn avx512<K: PanelKind, const PANELS: usize, const TILE: usize>(run: &PanelRun) {
    // SAFETY: the features are this function's; the rest is the caller's promise.
    unsafe { run_panels::<K, _, PANELS, TILE>(Avx512::new(), run) }
}

/// # Safety
/// As [`Kernel`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<K: PanelKind, const TILE: usize>(run: &PanelRun) {
    // SAFETY: the features are this function's; the rest is the caller's promise.
    unsafe { run_panels::<K, _, 1, TILE>(Avx2::new(), run) }
}

/// # Safety
/// As [`Kernel`].
unsafe fn portable<K: PanelKind, const TILE: usize>(run: &PanelRun) {
    // SAFETY: the caller's promise.
    unsafe { run_panels::<K, _, 1, TILE>(Portable::<PANEL_ROWS>, run) }
}
