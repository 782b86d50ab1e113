//! What every page must be, whatever the report: well-formed, self-contained, and named for those who cannot see it.

use std::collections::{BTreeMap, BTreeSet};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

use super::to_html;
use crate::comparison::{CellMap, Pass};
use crate::report::fixture::{every_kind, named};

/// Attributes of an element, each once.
fn attributes(element: &BytesStart<'_>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for attribute in element.attributes() {
        let attribute = attribute.unwrap();
        let name = String::from_utf8(attribute.key.as_ref().to_vec()).unwrap();
        let value = attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).unwrap().into_owned();
        assert!(found.insert(name, value).is_none());
    }
    found
}

/// Every element with its attributes; fails unless all are closed in order.
fn elements(page: &str) -> Vec<(String, BTreeMap<String, String>)> {
    let body = page.strip_prefix("<!DOCTYPE html>\n").unwrap();
    let mut reader = Reader::from_str(body);
    let mut found = Vec::new();
    loop {
        match reader.read_event().unwrap() {
            Event::Start(element) | Event::Empty(element) => {
                found.push((
                    String::from_utf8(element.name().as_ref().to_vec()).unwrap(),
                    attributes(&element),
                ));
            }
            Event::Eof => return found,
            Event::CData(_) | Event::PI(_) | Event::Comment(_) | Event::DocType(_) => panic!("not in a page"),
            _ => {}
        }
    }
}

#[test]
fn every_page_is_well_formed_and_needs_nothing_from_elsewhere() {
    for (name, report) in every_kind() {
        let page = to_html(&report);
        for (element, attributes) in elements(&page) {
            let allowed =
                !["script", "link", "iframe", "object", "embed", "img", "base", "form"].contains(&&*element);
            assert!(allowed, "{name}: <{element}>");
            for (attribute, value) in attributes {
                assert!(!attribute.starts_with("on") && attribute != "src", "{name}: {attribute}");
                let outside = value.contains("//") || value.contains("url(") || value.contains("javascript:");
                assert!(!outside, "{name}: {attribute}={value}");
                assert!(attribute != "href" || value.starts_with('#'), "{name}: {value}");
            }
        }
        let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        assert!(!style.contains("url(") && !style.contains("@import") && !style.contains('<'));
        assert!(
            !page.contains(|character: char| character.is_control() && !"\n\t".contains(character)),
            "{name}"
        );
    }
}

#[test]
fn every_picture_and_region_has_a_name_and_every_reference_a_target() {
    for (name, report) in every_kind() {
        let page = to_html(&report);
        let all = elements(&page);
        let mut ids = BTreeSet::new();
        for id in all.iter().filter_map(|(_, attributes)| attributes.get("id")) {
            assert!(ids.insert(id.as_str()), "{name}: id {id} twice");
        }
        for (element, attributes) in &all {
            let named = attributes.get("aria-label").is_some_and(|label| !label.is_empty())
                || attributes.get("aria-labelledby").is_some_and(|id| ids.contains(id.as_str()));
            if element == "svg" {
                assert!(
                    named || attributes.get("aria-hidden").is_some_and(|hidden| hidden == "true"),
                    "{name}"
                );
            }
            if attributes.get("role").is_some_and(|role| role == "region") || element == "section" {
                assert!(named, "{name}: <{element}>");
            }
            if let Some(target) = attributes.get("href") {
                assert!(ids.contains(target.trim_start_matches('#')), "{name}: {target}");
            }
        }
    }
}

#[test]
fn a_question_is_shown_as_text_with_both_answers() {
    let page = to_html(&named("degraded"));
    assert!(page.contains("If a &#60; b &#38; c &#62; &#34;d&#34;"));
    assert!(page.contains("&#60;script&#62;alert(1)") && !page.contains("<script"));
    let flip = page.split("<li class=\"flip\">").nth(1).unwrap().split("</ul></li>").next().unwrap();
    assert!(flip.contains("load pass") && flip.contains("baseline") && flip.contains("published"));
}

#[test]
fn the_verdict_comes_before_everything_else() {
    for (name, report) in every_kind() {
        let page = to_html(&report);
        let body = page.split("<body>").nth(1).unwrap();
        let verdict = body.find(&format!("<span class=\"name\">{}</span>", report.verdict)).unwrap();
        assert!(verdict < body.find("<main").unwrap(), "{name}");
    }
}

#[test]
fn wrong_kv_is_drawn_chunk_by_chunk_and_layer_by_layer() {
    let mut report = named("degraded");
    let comparison = &mut report.findings[0].comparison;
    comparison.kv.maps = vec![CellMap {
        question: comparison.by_question[0].question.clone(),
        pass: Pass::Load,
        rank: 0,
        chunks: vec!["..X".to_owned(), "R.?".to_owned()],
    }];
    let page = to_html(&report);
    let cells = elements(&page).into_iter().filter(|(name, attributes)| {
        name == "td" && attributes.get("class").is_some_and(|class| class == "wrong")
    });
    assert_eq!(cells.count(), 2);
}
