use std::collections::BTreeMap;

use super::*;
use crate::assets::Archive;
use crate::dataset::{Limits, Selection, extract};

/// Prompts of the embedded questions, by how many tokens they are beyond a whole number of chunks.
#[test]
fn the_embedded_questions_have_prompts_of_whole_chunks_and_of_a_token_less_and_more_for_each_model() {
    let suite = Suite::load("canary").unwrap();
    let archive = Archive::find(&suite.dataset, "nowhere".into()).unwrap();
    let dataset = extract(archive.open().unwrap(), &Limits::default()).unwrap();
    let chunk = usize::try_from(suite.lmcache.chunk_tokens).unwrap();
    for settings in &suite.models {
        let files = ModelFiles::find(&settings.source, "nowhere".into()).unwrap();
        let tokenizer = load_tokenizer(&files, &settings.name).unwrap();
        let template = template(&suite.prompt.template).unwrap();
        let prompter = Prompter { template: &template, tokenizer: &tokenizer, limits: prompt_limits(&suite) };
        let (mut of_rest, mut common): (BTreeMap<usize, usize>, usize) = (BTreeMap::new(), 0);
        for prompt in prompter.prompts(&dataset, Selection::ALL) {
            let prompt = prompt.unwrap();
            let rest = prompt.token_ids.len() % chunk;
            if prompt.question.subject.as_str() == "whole_chunks" {
                assert!(prompt.token_ids.len() >= 3 * chunk);
                *of_rest.entry(rest).or_default() += 1;
            } else {
                assert!(rest > 1 && rest < chunk - 1, "{}: {rest}", prompt.question);
                common += 1;
            }
        }
        assert_eq!(of_rest, BTreeMap::from([(0, 16), (1, 16), (chunk - 1, 16)]), "{}", settings.name);
        assert_eq!(common, 320, "the others are what they were, and come first");
    }
    let last = dataset.select(Selection::ALL).last().map(|(subject, ..)| subject.as_str());
    assert_eq!(last, Some("whole_chunks"), "`--subjects 8` leaves it out");
}
