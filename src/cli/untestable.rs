//! Which errors are those of the revision under test: a bisection skips it. All others end a bisection, since they would meet
//! the next revision, too. Main functions: [`why_unbuildable`], [`why_unjudged`].

use crate::carrier::RouteError;
use crate::engine::EngineError;
use crate::engine::environment::{BuildError, EnvironmentError};
use crate::fault::FaultError;
use crate::stage::StageError;

/// Why a revision cannot be built or installed, if that is its own fault.
pub(super) fn why_unbuildable(error: &BuildError) -> Option<String> {
    match error {
        BuildError::Failed { line, .. } => Some(line.clone()),
        BuildError::OtherTorch { .. } | BuildError::NoSource { .. } | BuildError::Tree(_) => {
            Some(error.to_string())
        }
        BuildError::Environment(error) => is_of_revision(error).then(|| error.to_string()),
        BuildError::Git { .. } | BuildError::Io { .. } => None,
    }
}

/// Why a revision cannot be judged, in whichever stage that shows, if that may be its own fault.
pub(super) fn why_unjudged(error: &StageError) -> Option<String> {
    let of_revision = match error {
        StageError::Engine(error) => match error {
            EngineError::Died { .. }
            | EngineError::Silent { .. }
            | EngineError::Failed { .. }
            | EngineError::NoNumbers { .. }
            | EngineError::Garbled { .. }
            | EngineError::Gone { .. }
            | EngineError::Stopped { .. }
            | EngineError::Http { .. } => true,
            EngineError::Spawn { .. } | EngineError::Worker { .. } => false,
        },
        StageError::Fault(error) => match error {
            FaultError::Layout(_) | FaultError::Missing { .. } => true,
            FaultError::Io { .. }
            | FaultError::Redis(_)
            | FaultError::Stages { .. }
            | FaultError::TooShort { .. } => false,
        },
        StageError::Environment(error) => is_of_revision(error),
        StageError::Route(RouteError::NoServer { .. } | RouteError::NoLmcache(_))
        | StageError::Evidence(_)
        | StageError::NotCounted { .. }
        | StageError::OtherBlocks { .. } => true,
        StageError::Route(_)
        | StageError::Asset(_)
        | StageError::Extract { .. }
        | StageError::NoPrompts(_)
        | StageError::Prompt(_)
        | StageError::Tokenizer { .. }
        | StageError::Template(_)
        | StageError::NoSuchQuestion(_)
        | StageError::EmptyShard { .. }
        | StageError::Questions(_)
        | StageError::Store(_)
        | StageError::TooLarge { .. }
        | StageError::TooLong { .. }
        | StageError::NoRoomForTurns { .. }
        | StageError::Windows { .. }
        | StageError::States { .. }
        | StageError::Nothing { .. }
        | StageError::LessRoom { .. }
        | StageError::Write { .. }
        | StageError::Read { .. }
        | StageError::Line { .. } => false,
    };
    of_revision.then(|| error.to_string())
}

fn is_of_revision(error: &EnvironmentError) -> bool {
    match error {
        EnvironmentError::Incomplete { .. }
        | EnvironmentError::UnknownVllm { .. }
        | EnvironmentError::Editable { .. }
        | EnvironmentError::Disagreement { .. } => true,
        EnvironmentError::Platform { .. }
        | EnvironmentError::NoPython { .. }
        | EnvironmentError::NoInstaller { .. }
        | EnvironmentError::DiskSpace { .. }
        | EnvironmentError::Step { .. }
        | EnvironmentError::NoEnvironment { .. }
        | EnvironmentError::Lock(_)
        | EnvironmentError::Io { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::fault::LayoutError;

    #[test]
    fn what_a_revision_may_have_caused_is_skipped_whichever_stage_finds_it() {
        let missing = FaultError::Missing { folder: "tier".into(), missing: 3, wanted: 4 };
        let layout = FaultError::Layout(LayoutError::Size { bytes: 1, expected: 2 });
        let server = RouteError::NoServer { program: "bin/lmcache".into() };
        let incomplete = EnvironmentError::Incomplete { folder: "env".into(), package: "lmcache" };
        let stopped = EngineError::Stopped {
            tier: "fs",
            behind: 1,
            written: 2,
            patience: std::time::Duration::from_secs(1),
            log: "server.log".into(),
        };
        let of_revision: [StageError; 5] =
            [missing.into(), layout.into(), server.into(), incomplete.into(), stopped.into()];
        for error in of_revision {
            assert!(why_unjudged(&error).is_some(), "{error}");
        }
        assert!(why_unbuildable(&BuildError::NoSource { path: "src".into() }).is_some());
    }

    #[test]
    fn what_the_next_revision_would_meet_too_ends_the_search() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let of_machine: [StageError; 4] = [
            FaultError::Io { path: "tier".into(), source: full() }.into(),
            FaultError::TooShort { chunk_tokens: 256 }.into(),
            RouteError::NoRedis.into(),
            StageError::Write { path: "notes".into(), source: full() },
        ];
        for error in of_machine {
            assert!(why_unjudged(&error).is_none(), "{error}");
        }
        assert!(why_unbuildable(&BuildError::Io { what: "LMCache".to_owned(), source: full() }).is_none());
    }
}
