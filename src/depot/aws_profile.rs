//! Credentials and region out of the files that `aws configure` writes. Main type: [`AwsProfile`].

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use object_store::aws::AmazonS3ConfigKey;

/// The settings of one profile. Its values are secrets, so it is never shown.
#[derive(Default)]
pub(super) struct AwsProfile(BTreeMap<String, String>);

impl AwsProfile {
    /// The profile that `AWS_PROFILE` names, or `default`; nothing where `AWS_ACCESS_KEY_ID` is set, which goes before it.
    pub(super) fn from_variables() -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if variable("AWS_ACCESS_KEY_ID").is_some() {
            return Self::default();
        }
        let home = || variable("HOME").map(|home| Utf8PathBuf::from(home).join(".aws"));
        let read = |name: &str, file: &str| {
            let path = variable(name).map(Utf8PathBuf::from).or_else(|| Some(home()?.join(file)))?;
            std::fs::read_to_string(path).ok()
        };
        let profile = variable("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
        let config = read("AWS_CONFIG_FILE", "config").unwrap_or_default();
        let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "credentials").unwrap_or_default();
        Self::read(&profile, &config, &credentials)
    }

    /// What both files say of a profile; the second one wins, as with AWS's own tools.
    fn read(profile: &str, config: &str, credentials: &str) -> Self {
        let sections = [profile.to_owned(), format!("profile {profile}")];
        let mut settings = BTreeMap::new();
        for text in [config, credentials] {
            let mut inside = false;
            for line in text.lines().map(str::trim) {
                if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                    inside = sections.iter().any(|wanted| wanted == section.trim());
                } else if let Some((name, value)) = line.split_once('=').filter(|_| inside) {
                    settings.insert(name.trim().to_lowercase(), value.trim().to_owned());
                }
            }
        }
        Self(settings)
    }

    /// As the object store's client takes them; variables that are set go before region and endpoint.
    pub(super) fn settings(self) -> Vec<(AmazonS3ConfigKey, String)> {
        let known = [
            ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId, None),
            ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey, None),
            ("aws_session_token", AmazonS3ConfigKey::Token, None),
            ("region", AmazonS3ConfigKey::Region, Some(["AWS_REGION", "AWS_DEFAULT_REGION"])),
            ("endpoint_url", AmazonS3ConfigKey::Endpoint, Some(["AWS_ENDPOINT_URL", "AWS_ENDPOINT"])),
        ];
        let mut settings = Vec::new();
        for (name, key, variables) in known {
            let is_set =
                variables.is_some_and(|names| names.iter().any(|name| std::env::var_os(name).is_some()));
            if let Some(value) = self.0.get(name).filter(|_| !is_set) {
                settings.push((key, value.clone()));
            }
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_from_both_files_and_others_are_left() {
        let config = "[default]\nregion = eu-central-1\n[profile ci]\nregion=us-east-2\nendpoint_url = http://127.0.0.1:9\n";
        let credentials = "# comment\n[ci]\naws_access_key_id = AKIA\naws_secret_access_key= s=cret\n[other]\naws_access_key_id = X\n";
        let of = |profile| AwsProfile::read(profile, config, credentials).0;
        let ci = of("ci");
        assert_eq!((ci["region"].as_str(), ci["aws_access_key_id"].as_str()), ("us-east-2", "AKIA"));
        assert_eq!(ci["aws_secret_access_key"], "s=cret");
        assert_eq!(
            of("default").into_iter().collect::<Vec<_>>(),
            [("region".to_owned(), "eu-central-1".to_owned())]
        );
        assert!(of("none").is_empty());
    }
}
