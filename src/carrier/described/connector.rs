//! A described connector as a carrier.

use super::description::Description;
use super::file::Described;
use super::transport::Open;
use crate::carrier::lmcache::{Translation, refused_by_server, require_lmcache, require_server};
use crate::carrier::{Carrier, Doing, Here, Proof, RouteError, Surroundings, Topology, Transport};
use crate::digest::{Digest, digest_bytes, digest_json};
use crate::engine::environment::EnvironmentIdentity;
use crate::machine::find_program;
use crate::model::HitRule;
use crate::options::{NotOffered, StoringOptions};

const NOT_LMCACHE: &str = "it is LMCache's, and this route is a connector that a file describes";

impl Carrier for Described {
    fn name(&self) -> &str {
        &self.description.name
    }

    fn topology(&self) -> Topology {
        self.description.topology
    }

    fn proof(&self) -> Proof {
        let of_engine = self.source.map_or(Proof::EngineCounters, Proof::EngineSource);
        self.tier.map_or(of_engine, Proof::SecondTier)
    }

    fn hits(&self) -> HitRule {
        self.description.hits
    }

    fn needs_lmcache(&self) -> bool {
        self.description.needs_lmcache || self.tier.is_some()
    }

    fn connector_class(&self) -> Option<&str> {
        Some(&self.description.connector.as_ref()?.class)
    }

    /// LMCache's servers do; of another connector nothing is known.
    fn loads_whole_chunks(&self) -> bool {
        self.tier.is_some()
    }

    fn loads_fail(&self) -> bool {
        self.description.loads_fail
    }

    fn refuses_resumption(&self) -> Option<&str> {
        self.description.refuses_resumption.as_deref()
    }

    fn takes_pieces(&self) -> bool {
        self.description.takes_pieces
    }

    /// The description, less what is for people, and the text of the code.
    fn content(&self) -> Option<Digest> {
        let silent = Description { words: String::new(), ..self.description.clone() };
        Some(digest_json(&serde_json::json!({ "description": silent, "code": self.code })))
    }

    fn refused_option(&self, options: StoringOptions) -> Option<NotOffered> {
        if self.tier.is_some() {
            return refused_by_server(options, Translation::NotOffered);
        }
        options.first_set().map(|option| NotOffered { option, reason: NOT_LMCACHE })
    }

    fn admit(&self, here: &Here<'_>) -> Result<(), RouteError> {
        if let Some(reason) = self.description.refused.get(&here.device) {
            return Err(RouteError::Device { device: here.device, reason: reason.clone() });
        }
        if self.tier.is_some() {
            require_server(here)?;
        } else if self.description.needs_lmcache {
            require_lmcache(here)?;
        }
        let lacks = here.environment.is_some_and(|environment| self.lacks_packages(environment.identity()));
        if let Some(packages) = self.description.packages.as_ref().filter(|_| lacks && self.lock.is_none()) {
            return Err(RouteError::NoPackage { package: packages.name.clone() });
        }
        let search_path = std::env::var_os("PATH").unwrap_or_default();
        for process in &self.description.processes {
            let program = &process.command[0];
            let in_environment = here.environment.is_some_and(|found| found.executable(program).exists());
            let packages = self.description.packages.as_ref().filter(|_| self.lock.is_some());
            let among_packages = packages.is_some_and(|packages| packages.programs.contains(program));
            if !in_environment && !among_packages && find_program(&search_path, program).is_none() {
                return Err(RouteError::NoProgram { program: program.clone() });
            }
        }
        Ok(())
    }

    fn added_packages(&self, environment: &EnvironmentIdentity) -> Option<Digest> {
        let lock = self.lock.as_ref().filter(|_| self.lacks_packages(environment))?;
        Some(digest_bytes(lock.as_bytes()))
    }

    fn prepare<'a>(
        &'a self,
        surroundings: &'a Surroundings<'a>,
        bytes: u64,
    ) -> Doing<'a, Box<dyn Transport + 'a>> {
        Box::pin(
            async move { Ok(Box::new(Open::begin(self, surroundings, bytes).await?) as Box<dyn Transport>) },
        )
    }
}
