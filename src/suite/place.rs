//! Where in a suite's text a setting stands. Main function: [`place_of`].

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// `line 12, column 1`, both from 1, of the innermost part of `path` that the text holds, as in `models.1.name`; none
/// where it holds no part of it.
pub(crate) fn place_of(text: &str, path: &str) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let mut steps = path.split('.');
    let (span, value) = field(document.get_ref(), steps.next()?)?;
    let (mut found, mut value) = (span.start, value.get_ref());
    for step in steps {
        let inner = match value {
            DeValue::Table(table) => field(table, step),
            DeValue::Array(items) => {
                step.parse().ok().and_then(|index: usize| items.get(index)).map(|item| (item.span(), item))
            }
            _ => None,
        };
        let Some((span, item)) = inner else { break };
        (found, value) = (span.start, item.get_ref());
    }
    let before = text.get(..found)?;
    let line = before.matches('\n').count() + 1;
    let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
    Some(format!("line {line}, column {column}"))
}

/// Where a field's name stands, and its value.
fn field<'a, 'text>(
    table: &'a DeTable<'text>,
    name: &str,
) -> Option<(Range<usize>, &'a Spanned<DeValue<'text>>)> {
    let (key, value) = table.iter().find(|(key, _)| key.get_ref().as_ref() == name)?;
    Some((key.span(), value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_found_in_tables_in_lists_and_on_one_line() {
        let text =
            "a = 1\n[b]\n  c = {d = [2, {e = 3}]}\n[[models]]\nname = \"x\"\n[[models]]\nname = \"y\"\n";
        assert_eq!(place_of(text, "a").unwrap(), "line 1, column 1");
        assert_eq!(place_of(text, "b.c").unwrap(), "line 3, column 3");
        assert_eq!(place_of(text, "b.c.d.1.e").unwrap(), "line 3, column 17");
        assert_eq!(place_of(text, "models.1.name").unwrap(), "line 7, column 1");
        assert_eq!(place_of(text, "b.absent").unwrap(), "line 2, column 2");
        assert_eq!(place_of(text, "absent"), None);
    }
}
