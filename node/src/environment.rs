//! The one place that reads the environment. None of its variables is ours: they are the ecosystem's.

use std::ffi::OsString;
use std::path::PathBuf;

/// Where data lies unless `--data-dir` says otherwise: `$XDG_DATA_HOME/relevo`, else `~/.local/share/relevo`.
///
/// `None` if neither `XDG_DATA_HOME` nor `HOME` is set to an absolute path (the XDG specification has relative ones ignored).
pub fn default_data_dir() -> Option<PathBuf> {
    data_dir_from(std::env::var_os("XDG_DATA_HOME"), std::env::var_os("HOME"))
}

/// Whether the user asked for text without colour, <https://no-color.org>: any value but the empty one.
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

fn data_dir_from(xdg_data_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |value: Option<OsString>| value.map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(xdg_data_home)
        .or_else(|| absolute(home).map(|home| home.join(".local/share")))
        .map(|base| base.join("relevo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_folder_follows_the_xdg_specification() {
        let cases = [
            (Some("/data"), Some("/home/ada"), Some("/data/relevo")),
            (None, Some("/home/ada"), Some("/home/ada/.local/share/relevo")),
            (Some("relative"), Some("/home/ada"), Some("/home/ada/.local/share/relevo")),
            (Some(""), Some("/home/ada"), Some("/home/ada/.local/share/relevo")),
            (None, None, None),
        ];
        for (xdg, home, expected) in cases {
            assert_eq!(data_dir_from(xdg.map(Into::into), home.map(Into::into)), expected.map(PathBuf::from));
        }
    }
}
