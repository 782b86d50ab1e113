//! Programs in the folders of a search path.

use std::ffi::OsStr;

use camino::Utf8PathBuf;
use rustix::fs::Access;

/// The executable files of that name in the folders of a search path, in its order. Relative folders do not count.
pub fn files_on(search_path: &OsStr, name: &str) -> impl Iterator<Item = Utf8PathBuf> {
    let folders = std::env::split_paths(search_path).filter(|folder| folder.is_absolute());
    let files = folders.filter_map(move |folder| Utf8PathBuf::from_path_buf(folder.join(name)).ok());
    files.filter(|file| file.is_file() && rustix::fs::access(file.as_std_path(), Access::EXEC_OK).is_ok())
}

/// The first of these files: the one that a shell would start.
#[must_use]
pub fn find_program(search_path: &OsStr, name: &str) -> Option<Utf8PathBuf> {
    files_on(search_path, name).next()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_file_that_can_be_started_is_a_program() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, mode) in [("text/tool", 0o644), ("good/tool", 0o755)] {
            std::fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            std::fs::write(path(name), "").unwrap();
            std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        std::fs::create_dir_all(path("folder/tool")).unwrap();
        let folders = [path("folder"), path("text"), "good".into(), path("good")];
        let search_path = std::env::join_paths(folders).unwrap();
        assert_eq!(find_program(&search_path, "tool").unwrap().as_std_path(), path("good/tool"));
        assert_eq!(find_program(&search_path, "other"), None);
    }
}
