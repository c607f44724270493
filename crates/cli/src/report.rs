//! Problems, printed as a compiler would: object, field, file, line, caret.
//!
//! **Invariant:** writes to standard error only, so that standard output stays a document; colours
//! only on a terminal, and never when `NO_COLOR` is set.

use std::io::{IsTerminal, Write};
use std::path::Path;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use config::yaml::Mark;
use model::Severity;

use crate::files::Files;

/// Print every problem of the files, in order of file and line. Returns the number of errors.
pub(crate) fn print(files: &Files) -> usize {
    let renderer = renderer();
    let mut out = std::io::stderr().lock();
    let mut errors = 0;
    let mut all: Vec<(Option<(usize, Mark)>, Severity, String)> = Vec::new();
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
        let file = place.and_then(|(file, at)| Some((files.texts.get(file)?, at)));
        let text = match file {
            Some(((path, text), at)) => {
                let window = Window::around(text, at);
                let path = shown(path);
                let snippet = Snippet::source(window.text)
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
struct Window<'a> {
    text: &'a str,
    first_line: usize,
    span: std::ops::Range<usize>,
}

// === impl Window ===

impl<'a> Window<'a> {
    fn around(text: &'a str, at: Mark) -> Self {
        let wanted = at.line.max(1) as usize;
        let mut start = 0;
        let mut line = "";
        for (number, content) in (1..).zip(text.split_inclusive('\n')) {
            line = content;
            if number == wanted {
                break;
            }
            start += content.len();
        }
        if start >= text.len() {
            (start, line) = (text.len().saturating_sub(line.len()), line);
        }
        let line = line.trim_end();
        let column = at.column.max(1) as usize - 1;
        let from = line.char_indices().nth(column).map_or(line.len(), |(i, _)| i);
        let end = line.len().max(from);
        debug_assert!(start <= text.len());
        Self { text: line, first_line: wanted, span: from..end }
    }
}
