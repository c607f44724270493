//! Problems, printed as a compiler would: object, field, file, line, caret.
//!
//! **Invariant:** writes to standard error only, so that standard output stays a document; colours
//! only on a terminal, and never when `NO_COLOR` is set.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use config::yaml::Mark;
use model::{ObjectRef, Reason, Severity};
use serde_json::{Value, json};

use crate::files::{Files, Finding};

/// One fault, ready to be shown; ordered by file and line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Message {
    place: Option<(usize, Mark)>,
    severity: Severity,
    /// The object and the field; none where a document is no object.
    subject: Option<(Arc<ObjectRef>, String)>,
    reason: Reason,
    fault: String,
    help: String,
}

/// Everything that is wrong with the files, in order of file and line, each thing once.
pub(crate) fn messages(files: &Files) -> Vec<Message> {
    let unreadable = files.unreadable.iter().map(|unreadable| Message {
        place: Some((unreadable.file, unreadable.at)),
        severity: Severity::Error,
        subject: None,
        reason: Reason::Syntax,
        fault: format!("not a YAML document: {}", unreadable.message),
        help: remedy(Reason::Syntax).to_owned(),
    });
    let findings = files.findings.iter().map(|Finding { problem, place }| {
        let (fault, advice) = problem.fault_and_advice();
        Message {
            place: *place,
            severity: problem.severity,
            subject: Some((Arc::clone(&problem.object), problem.field.clone())),
            reason: problem.reason,
            fault: fault.to_owned(),
            help: advice.unwrap_or(remedy(problem.reason)).to_owned(),
        }
    });
    let mut all: Vec<Message> = unreadable.chain(findings).collect();
    all.sort();
    all.dedup();
    all
}

/// What to do about a fault whose message does not say it.
fn remedy(reason: Reason) -> &'static str {
    match reason {
        Reason::Syntax => "correct the YAML; other documents of the file were read",
        Reason::UnknownKind | Reason::UnknownField => "correct the name, or remove it",
        Reason::WrongType | Reason::OutOfRange => "correct the value",
        Reason::Required => "add it",
        Reason::NotSupported => "remove it; the README lists what is in force",
        Reason::DuplicateObject | Reason::Duplicate => "remove one of the two",
        Reason::HostConflict | Reason::PortConflict => "give one of the two another value",
        Reason::HostNotFound
        | Reason::NothingSelected
        | Reason::SubsetNotFound
        | Reason::PortNotFound
        | Reason::GatewayNotFound
        | Reason::HostNotServed => "correct the reference, or add what it names",
        Reason::Rejected | Reason::Invalid => "change this part; and please report it to Heddle",
    }
}

/// Print messages.
pub(crate) fn print(files: &Files, messages: &[Message]) {
    let renderer = renderer();
    let mut out = std::io::stderr().lock();
    let mut lines = Lines::default();
    for message in messages {
        let level = match message.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = message.title();
        let mut group = Group::with_title(level.primary_title(&title));
        if let Some((file, at)) = message.place
            && let Some((path, text)) = files.texts.get(file)
        {
            let window = lines.window(file, text, at);
            let snippet = Snippet::source(window.text)
                .line_start(window.first_line)
                .path(shown(path))
                .annotation(AnnotationKind::Primary.span(window.span));
            group = group.element(snippet);
        }
        let text = renderer.render(&[group.element(Level::HELP.message(&message.help))]);
        // Nowhere is left to report a failure of standard error to.
        let _ = writeln!(out, "{text}\n");
    }
}

/// Print an error that ends the program.
pub(crate) fn fatal(error: &anyhow::Error) {
    let title = format!("{error:#}");
    let group = Group::with_title(Level::ERROR.primary_title(&title));
    let _ = writeln!(std::io::stderr(), "{}", renderer().render(&[group]));
}

/// Print a remark.
pub(crate) fn note(text: &str) {
    let group = Group::with_title(Level::NOTE.primary_title(text));
    let _ = writeln!(std::io::stderr(), "{}", renderer().render(&[group]));
}

fn renderer() -> Renderer {
    let coloured = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
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

// === impl Message ===

impl Message {
    /// Whether something is not in force because of it.
    pub(crate) fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    fn title(&self) -> String {
        match &self.subject {
            None => self.fault.clone(),
            Some((object, field)) if field.is_empty() => format!("{object}: {}", self.fault),
            Some((object, field)) => format!("{object} {field}: {}", self.fault),
        }
    }

    /// The same, for programs.
    pub(crate) fn to_json(&self, files: &Files) -> Value {
        let object = self.subject.as_ref().map(|(object, _)| &**object);
        let path = self.place.and_then(|(file, _)| files.texts.get(file)).map(|(p, _)| shown(p));
        json!({
            "severity": self.severity,
            "reason": self.reason,
            "message": self.fault,
            "help": self.help,
            "kind": object.map(|o| &*o.kind.name),
            "namespace": object.map(|o| &*o.namespace),
            "name": object.map(|o| &*o.name),
            "field": self.subject.as_ref().map(|(_, field)| field),
            "file": path,
            "line": self.place.map(|(_, at)| at.line),
            "column": self.place.map(|(_, at)| at.column),
        })
    }
}

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
