//! The terminal's last line: one bar at a time, and none once the program has its last words to say.
//!
//! A terminal shows a Ctrl-C as `^C` where the cursor is. A bar that left the cursor at the right margin would push it to
//! the next line, and stay on screen because that line is cleared instead; so bars end before the margin.

use std::borrow::Cow;
use std::fmt::Write;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

/// `^C`, and a column for the cursor.
const MARGIN: u16 = 3;

/// The bar that is shown. There is one terminal, and threads that outlive an interrupt know of it, too.
static BAR: Mutex<Slot> = Mutex::new(Slot::Open(None));

#[derive(Debug)]
enum Slot {
    Open(Option<ProgressBar>),
    Closed,
}

fn slot() -> MutexGuard<'static, Slot> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A bar that is not shown yet; without length, it is one that only turns.
pub(super) fn make_bar(length: Option<u64>, template: &str) -> ProgressBar {
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(Narrowed(Term::stderr())), 20);
    let bar = ProgressBar::with_draw_target(length, target);
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Does something with the bar, which `make` makes where there is none.
pub(super) fn with_bar(make: impl FnOnce() -> ProgressBar, change: impl FnOnce(&ProgressBar)) {
    if let Slot::Open(bar) = &mut *slot() {
        change(bar.get_or_insert_with(make));
    }
}

/// Does something above the bar, which stays where it is.
pub(super) fn say_above(say: impl FnOnce()) {
    match &*slot() {
        Slot::Open(Some(bar)) => bar.suspend(say),
        Slot::Open(None) | Slot::Closed => say(),
    }
}

/// Takes the bar away.
pub(super) fn clear_bar() {
    if let Slot::Open(bar) = &mut *slot()
        && let Some(bar) = bar.take()
    {
        bar.finish_and_clear();
    }
}

/// Takes the bar away for good, before the program's last words.
pub fn close() {
    let before = std::mem::replace(&mut *slot(), Slot::Closed);
    if let Slot::Open(Some(bar)) = before {
        bar.finish_and_clear();
    }
}

/// A text without what a terminal would obey: control characters, but for line ends and tabs, and marks that turn the
/// direction of writing, each as JSON escapes it.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |character: char| {
        let turns = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || (character.is_control() && !matches!(character, '\n' | '\t'))
    };
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if obeyed(character) {
            write!(shown, "\\u{:04x}", u32::from(character)).expect("a string can be written to");
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// Standard error, less its right margin.
#[derive(Debug)]
struct Narrowed(Term);

impl TermLike for Narrowed {
    fn width(&self) -> u16 {
        self.0.size().1.saturating_sub(MARGIN).max(1)
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_up(n)
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_down(n)
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_right(n)
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.0.move_cursor_left(n)
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        self.0.write_line(line)
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.write_str(text)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.0.clear_line()
    }

    fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(printable("a\u{1b}]0;x\u{7}\r\u{9b}\u{202e}"), "a\\u001b]0;x\\u0007\\u000d\\u009b\\u202e");
        assert!(matches!(printable("é, \t\n"), Cow::Borrowed(_)));
    }
}
