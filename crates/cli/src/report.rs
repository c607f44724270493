//! Problems, printed as a compiler would: object, field, file, line, caret.
//!
//! **Invariant:** writes to standard error only, so that standard output stays a document; colours
//! only on a terminal, and never when `NO_COLOR` is set.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use config::yaml::Mark;
use model::Severity;

use crate::files::Files;

/// Place, severity and text; ordered as they are printed.
type Message = (Option<(usize, Mark)>, Severity, String);

/// Print every problem of the files, in order of file and line. Returns the number of errors.
pub(crate) fn print(files: &Files) -> usize {
    let renderer = renderer();
    let mut out = std::io::stderr().lock();
    let mut errors = 0;
    let mut lines = Lines::default();
    let mut all: Vec<Message> = Vec::new();
    for unreadable in &files.unreadable {
        let place = Some((unreadable.file, unreadable.at));
        let title = format!("not a YAML document: {}", unreadable.message);
        all.push((place, Severity::Error, title));
    }
    for finding in &files.findings {
        let problem = &finding.problem;
        let field = if problem.field.is_empty() { "" } else { " " };
        let title = format!("{}{field}{}: {}", problem.object, problem.field, problem.message);
        all.push((finding.place, problem.severity, title));
    }
    all.sort();
    all.dedup();
    for (place, severity, title) in all {
        errors += usize::from(severity == Severity::Error);
        let level = match severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let file = place.and_then(|(file, at)| Some((file, files.texts.get(file)?, at)));
        let text = match file {
            Some((file, (path, text), at)) => {
                let window = lines.window(file, text, at);
                let path = shown(path);
                let snippet = Snippet::source(&window.text)
                    .line_start(window.first_line)
                    .path(&path)
                    .annotation(AnnotationKind::Primary.span(window.span));
                renderer.render(&[level.primary_title(&title).element(snippet)])
            }
            None => renderer
                .render(&[annotate_snippets::Group::with_title(level.primary_title(&title))]),
        };
        // Nowhere is left to report a failure of standard error to.
        let _ = writeln!(out, "{text}\n");
    }
    errors
}

/// Print an error that ends the program.
pub(crate) fn fatal(error: &anyhow::Error) {
    let title = format!("{error:#}");
    let group = annotate_snippets::Group::with_title(Level::ERROR.primary_title(&title));
    let _ = writeln!(std::io::stderr(), "{}", renderer().render(&[group]));
}

/// Print a remark.
pub(crate) fn note(text: &str) {
    let group = annotate_snippets::Group::with_title(Level::NOTE.primary_title(text));
    let _ = writeln!(std::io::stderr(), "{}", renderer().render(&[group]));
}

fn renderer() -> Renderer {
    let coloured = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if coloured { Renderer::styled() } else { Renderer::plain() }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The line that is meant, cut out of a text that may be large.
struct Window {
    text: String,
    first_line: usize,
    span: std::ops::Range<usize>,
}

/// Beginnings of the lines of each file.
#[derive(Default)]
struct Lines(BTreeMap<usize, Vec<usize>>);

// === impl Lines ===

impl Lines {
    /// The line around a place.
    fn window(&mut self, file: usize, text: &str, at: Mark) -> Window {
        /// Characters shown on either side.
        const REACH: usize = 100;
        let starts = self.0.entry(file).or_insert_with(|| {
            let next = text.match_indices('\n').map(|(i, _)| i + 1);
            std::iter::once(0).chain(next).collect()
        });
        let number = (at.line.max(1) as usize).min(starts.len());
        let start = starts.get(number - 1).copied().unwrap_or_default();
        let line = text[start..].lines().next().unwrap_or_default().trim_end();
        let column = (at.column.max(1) as usize - 1).min(line.chars().count());
        let left = column.saturating_sub(REACH);
        // A tab is one column for us and several for a terminal.
        let tidy = |c: char| if c.is_control() { ' ' } else { c };
        let text: String = line.chars().skip(left).take(2 * REACH).map(tidy).collect();
        let from = text.char_indices().nth(column - left).map_or(text.len(), |(i, _)| i);
        Window { first_line: number, span: from..text.len(), text }
    }
}
