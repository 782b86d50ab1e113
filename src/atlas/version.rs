//! Which of two versions is the older one. Main function: [`age`].

/// What a version is older or newer than another by: its numbers; whether it comes before (`rc`, `dev`), as or behind (`post`) what these
/// alone name; and the numbers behind that word.
pub(super) fn age(version: &str) -> (Vec<u64>, u8, Vec<u64>) {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|letter: char| !letter.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    let version = version.split('+').next().unwrap_or(version);
    let word = version.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(version.len());
    let (release, rest) = version.split_at(word);
    let kind = match rest {
        "" => 1,
        rest if rest.starts_with("post") => 2,
        _ => 0,
    };
    (numbers(release), kind, numbers(rest))
}

/// Whether a version comes before the release that its numbers name: `0.5.7rc2`.
pub(super) fn is_pre_release(version: &str) -> bool {
    age(version).1 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_before_a_release_is_told_from_releases() {
        for version in ["0.5.7rc2", "0.5.6rc4.dev27", "1.0a1", "2.0.dev1+local"] {
            assert!(is_pre_release(version), "{version}");
        }
        for version in ["0.5.6", "0.3.9.post2", "2.11.0+cu130"] {
            assert!(!is_pre_release(version), "{version}");
        }
    }

    #[test]
    fn versions_are_sorted_by_age() {
        let mut versions = ["0.10.0", "0.9.0.post1", "1.0rc1", "0.9.0", "1.0", "1.0.dev3", "1.0+cpu"];
        versions.sort_by_key(|version| age(version));
        assert_eq!(versions[..3], ["0.9.0", "0.9.0.post1", "0.10.0"]);
        assert_eq!(versions[5..], ["1.0", "1.0+cpu"]);
    }
}
