//! What is wrong with an object, said so that its author can mend it.
//!
//! In: whatever a layer could not use. Out: one value per fault, with object, field and advice.
//!
//! **Invariant:** a problem never stops anything else; it is data, not an error path.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::object::ObjectRef;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something of the object is not in force.
    Error,
    /// In force, but probably not as meant.
    Warning,
}

/// Machine-readable cause, in the CamelCase of Kubernetes conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Reason {
    /// The document is no YAML or JSON, or no object.
    Syntax,
    /// A kind that we do not read.
    UnknownKind,
    /// A field that the kind does not have.
    UnknownField,
    /// A value of the wrong type or form.
    WrongType,
    /// A value outside its bounds.
    OutOfRange,
    /// A field that must be there is missing.
    Required,
    /// A field of the API that this version does not read yet.
    NotSupported,
    /// Two objects of one kind, namespace and name.
    DuplicateObject,
    /// Two objects claim the same host.
    HostConflict,
    /// Two servers claim the same port in ways that exclude each other.
    PortConflict,
    /// No service has this host.
    HostNotFound,
    /// No workload carries the labels of this selector.
    NothingSelected,
    /// No DestinationRule defines this subset.
    SubsetNotFound,
    /// The service has no such port.
    PortNotFound,
    /// No such gateway.
    GatewayNotFound,
    /// No server of the bound gateways accepts this host.
    HostNotServed,
    /// The same thing twice within one object.
    Duplicate,
    /// A proxy rejected what was made of the object.
    Rejected,
    /// A generated resource breaks a rule of Envoy's API; it was withheld.
    Invalid,
}

/// One fault of one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// The object at fault.
    pub object: Arc<ObjectRef>,
    /// Field path, such as `spec.http[0].route[1].destination.subset`; empty for the whole object.
    pub field: String,
    /// How bad it is.
    pub severity: Severity,
    /// Its cause.
    pub reason: Reason,
    /// What is wrong, what follows from it, and after the last semicolon what to do. Lower case,
    /// no full stop; what users wrote stands in double quotes where it may hold anything.
    pub message: String,
}

// === impl Severity ===

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

// === impl Problem ===

impl Problem {
    /// A fault by which part of the object is not in force.
    pub fn error(
        object: &Arc<ObjectRef>,
        field: impl Into<String>,
        reason: Reason,
        message: impl Into<String>,
    ) -> Self {
        Self {
            object: Arc::clone(object),
            field: field.into(),
            severity: Severity::Error,
            reason,
            message: message.into(),
        }
    }

    /// A fault that leaves the object in force.
    pub fn warning(
        object: &Arc<ObjectRef>,
        field: impl Into<String>,
        reason: Reason,
        message: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Warning, ..Self::error(object, field, reason, message) }
    }

    /// The message in two: what is wrong, and what to do, where that is not obvious.
    pub fn fault_and_advice(&self) -> (&str, Option<&str>) {
        const MARK: &str = "; ";
        // What users wrote may hold the mark too; it is quoted.
        let unquoted = |at: usize| {
            let before = self.message[..at].replace("\\\"", "");
            before.matches('"').count().is_multiple_of(2)
        };
        let mark = self.message.rmatch_indices(MARK).map(|(at, _)| at).find(|at| unquoted(*at));
        match mark {
            Some(at) => (&self.message[..at], Some(&self.message[at + MARK.len()..])),
            None => (&self.message, None),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.object)?;
        if !self.field.is_empty() {
            write!(f, " {}", self.field)?;
        }
        write!(f, ": {}", self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn what_to_do_is_what_follows_the_last_semicolon_outside_of_quotes() {
        let kind = Kind { name: "Service".into(), group: "".into() };
        let object = ObjectRef { source: "".into(), kind, namespace: "".into(), name: "a".into() };
        let object = Arc::new(object);
        for (message, fault, advice) in [
            ("is required", "is required", None),
            ("no such host; correct it", "no such host", Some("correct it")),
            ("a; b; do c", "a; b", Some("do c")),
            ("must be x, but is \"y; z\"", "must be x, but is \"y; z\"", None),
            ("\"y; z\" is bad; drop it", "\"y; z\" is bad", Some("drop it")),
            ("is \"a\\\"; b\"; drop it", "is \"a\\\"; b\"", Some("drop it")),
        ] {
            let problem = Problem::error(&object, "", Reason::Invalid, message);
            assert_eq!(problem.fault_and_advice(), (fault, advice), "{message}");
        }
    }
}
