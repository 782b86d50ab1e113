//! What keys name by digest and a run has on this machine: the archive, the models' files. Main type: [`Sources`].

use camino::Utf8Path;

use crate::assets::{Archive, AssetError, Model, ModelFiles};
use crate::digest::{Digest, digest_bytes};
use crate::suite::Suite;

/// The file of a model that turns text into tokens.
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// A suite's dataset and models, found and hashed once.
#[derive(Debug)]
pub struct Sources {
    dataset: String,
    archive: Archive,
    archive_digest: Digest,
    models: Vec<Model>,
    /// Of each model, its tokenizer's digest.
    tokenizers: Vec<Digest>,
}

impl Sources {
    /// Finds what a suite names.
    ///
    /// # Errors
    /// When a dataset or a model is missing or cannot be read.
    pub fn find(suite: &Suite, cache: &Utf8Path) -> Result<Self, AssetError> {
        let archive = Archive::find(&suite.dataset, cache)?;
        let archive_digest = archive.digest()?;
        let mut models: Vec<Model> = Vec::new();
        for settings in &suite.models {
            // The same files are read once, whatever else their models are told.
            let known = models.iter().find(|known| known.settings().source == settings.source);
            models.push(match known {
                Some(known) => known.with_settings(settings.clone()),
                None => Model::find(settings, cache)?,
            });
        }
        let tokenizers = models
            .iter()
            .map(|model| Ok(digest_bytes(&model.files().read(TOKENIZER)?)))
            .collect::<Result<_, AssetError>>()?;
        Ok(Self { dataset: suite.dataset.clone(), archive, archive_digest, models, tokenizers })
    }

    /// The dataset's name or path, for messages.
    #[must_use]
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// The dataset's archive.
    #[must_use]
    pub fn archive(&self) -> (&Archive, Digest) {
        (&self.archive, self.archive_digest)
    }

    /// The suite's models, in its order.
    #[must_use]
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The suite's models with their tokenizers' digests, in its order.
    pub fn models_with_tokenizers(&self) -> impl Iterator<Item = (&Model, Digest)> {
        self.models.iter().zip(self.tokenizers.iter().copied())
    }

    /// The files of this digest.
    pub(super) fn files(&self, digest: Digest) -> &ModelFiles {
        let model = self.models.iter().find(|model| model.digest() == digest);
        model.expect("a graph names the models that it was made of").files()
    }

    /// The files of a model with the tokenizer of this digest.
    pub(super) fn files_with_tokenizer(&self, digest: Digest) -> &ModelFiles {
        let found = self.models_with_tokenizers().find(|(_, tokenizer)| *tokenizer == digest);
        found.expect("a graph names the tokenizers that it was made of").0.files()
    }
}
