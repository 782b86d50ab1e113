//! What is asked by default, where nothing else is said.

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8Path;
use kv_correctness::assets::{Archive, ModelFiles, is_name};
use kv_correctness::dataset::{Limits, PromptLimits, PromptTemplate, Prompter, Tokenizer, extract_with_rest};
use kv_correctness::suite::Suite;

#[test]
fn the_questions_that_are_asked_by_default_hold_every_length_letter_and_place_of_a_fact() {
    let suite = Suite::load_with("canary", is_name).unwrap();
    let archive = Archive::find(&suite.dataset, Utf8Path::new("/nonexistent")).unwrap();
    let (dataset, _) = extract_with_rest(archive.open().unwrap(), &Limits::default()).unwrap();
    let files = ModelFiles::find(&suite.models[0].source, Utf8Path::new("/nonexistent")).unwrap();
    let tokenizer = Tokenizer::from_bytes(&files.read("tokenizer.json").unwrap()).unwrap();
    let template = PromptTemplate::single_letter();
    let limits = PromptLimits { example_tokens: suite.prompt.example_tokens, prompt_tokens: 8000 };
    let prompter = Prompter { template: &template, tokenizer: &tokenizer, limits };
    let questions: BTreeMap<_, _> = dataset.questions().map(|question| (&question.id, question)).collect();
    let chunk = suite.lmcache.chunk_tokens as usize;
    let (mut kinds, mut letters, mut subjects) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
    let mut beside_whole_chunks = BTreeSet::new();
    for prompt in prompter.prompts(&dataset, suite.selection()) {
        let prompt = prompt.unwrap();
        let question = questions[&prompt.question];
        // `… Mara keeps what?` asks for the fact `Mara keeps herons …`, which the notes hold once.
        let Some((_, asked)) = question.text.trim().rsplit_once(". ") else { continue };
        let Some(fact) = asked.strip_suffix("what?") else { continue };
        let text = tokenizer.decode(&prompt.token_ids).unwrap();
        let place = text.rfind(&question.text).unwrap() + question.text.find(fact).unwrap();
        let before = tokenizer.encode(&text[..place]).unwrap().len();
        beside_whole_chunks.insert((prompt.token_ids.len() + 1) % chunk);
        kinds.insert((prompt.token_ids.len() / chunk, before / chunk));
        letters.insert(question.answer);
        *subjects.entry(question.id.subject.clone()).or_insert(0) += 1;
    }
    assert_eq!(subjects.into_values().collect::<Vec<_>>(), [8; 9]);
    assert_eq!(letters.len(), 4);
    assert!(beside_whole_chunks.is_superset(&BTreeSet::from([0, 1, 2])), "a token less, whole, a token more");
    let all = [(4, 0), (4, 1), (4, 2), (4, 3), (5, 0), (5, 1), (5, 2), (5, 3), (5, 4)];
    assert!(all.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
}
