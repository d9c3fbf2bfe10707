//! Instruction sets that the CPU kernels are written for, chosen at run time.
//!
//! **Invariant:** outside this crate an [`Isa`] comes only from [`Isa::detect`], [`Isa::available`] or its name, which look at the processor:
//! whoever holds one may run its kernels. Inside, a dispatch may rely on that.

use std::fmt;
use std::str::FromStr;

/// An instruction set that this processor has. All of them compute the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; any processor.
    #[non_exhaustive]
    Portable,
    /// AVX2 with FMA and F16C: Haswell, Zen 1 and later.
    #[non_exhaustive]
    Avx2,
    /// AVX-512 F, BW, DQ, VL, VNNI (and what AVX2 asks for): Cascade Lake, Zen 4 and later.
    #[non_exhaustive]
    Avx512Vnni,
}

impl Isa {
    /// All of them, the fastest first.
    const ALL: [Self; 3] = [Self::Avx512Vnni, Self::Avx2, Self::Portable];

    /// The fastest one of this processor.
    pub fn detect() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// Those of this processor, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// Its name in messages, flags and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512Vnni => "avx512-vnni",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2(),
            Self::Avx512Vnni => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An instruction set by name that this processor does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction set is {0}, this processor has {available}", available = Isa::available().map(Isa::name).collect::<Vec<_>>().join(", "))]
pub struct UnknownIsa(String);

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        Self::available().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}
