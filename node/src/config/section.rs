//! How a section of `relevo.toml` is declared: once, as a struct whose docs, defaults and examples make the example file and the checks.

/// A section: a table of the file.
pub(super) trait Section: Default + serde::Serialize {
    /// What it is about, line by line.
    const ABOUT: &'static [&'static str];
    /// Its keys, in the order of the example file.
    const KEYS: &'static [Key];
}

/// A key of a section.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// As it stands in the file.
    pub name: &'static str,
    /// What it does, line by line.
    pub doc: &'static [&'static str],
    /// A value to show, as a comment, where the default is none.
    pub example: Option<&'static str>,
}

/// Declares a section. Each key is `name: type = default;`, with `, example "value"` where the default is none.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident {
            $( $(#[doc = $doc:literal])+ $key:ident: $ty:ty = $default:expr $(, example $example:literal)?; )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $key: $ty, )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $key: $default, )+ }
            }
        }

        impl $crate::config::section::Section for $name {
            const ABOUT: &'static [&'static str] = &[$($about),+];
            const KEYS: &'static [$crate::config::section::Key] = &[
                $( $crate::config::section::Key {
                    name: stringify!($key),
                    doc: &[$($doc),+],
                    example: section!(@example $($example)?),
                }, )+
            ];
        }
    };
    (@example) => { None };
    (@example $example:literal) => { Some($example) };
}

pub(super) use section;
