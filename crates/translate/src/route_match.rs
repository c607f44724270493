//! Conditions of routes.
//!
//! **Invariant:** a condition is never wider than the rule's: what cannot be spelled was dropped
//! with its rule before it came here.

use std::sync::Arc;

use envoy_api::envoy::config::route::v3::{
    HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
};
use envoy_api::envoy::r#type::matcher::v3::{
    RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use model::ir;
use model::rows::{HeaderMatch, QueryMatch, StringMatch};

/// Spell the conditions of a route.
pub(crate) fn route_match(matcher: &ir::RouteMatch) -> RouteMatch {
    let ir::RouteMatch { path, headers, query } = matcher;
    let (specifier, ignore_case) = match path {
        ir::PathMatch::Any => (PathSpecifier::Prefix("/".to_owned()), false),
        ir::PathMatch::Exact { path, ignore_case } => {
            (PathSpecifier::Path(path.to_string()), *ignore_case)
        }
        ir::PathMatch::Prefix { prefix, ignore_case } => {
            (PathSpecifier::Prefix(prefix.to_string()), *ignore_case)
        }
        ir::PathMatch::Regex(pattern) => (PathSpecifier::SafeRegex(regex(pattern)), false),
    };
    RouteMatch {
        path_specifier: Some(specifier),
        case_sensitive: ignore_case.then_some(false),
        headers: headers.iter().map(header).collect(),
        query_parameters: query.iter().map(query_parameter).collect(),
        ..Default::default()
    }
}

fn header(condition: &HeaderMatch) -> HeaderMatcher {
    let HeaderMatch { name, value, invert } = condition;
    let specifier = match string_matcher(value) {
        None => HeaderMatchSpecifier::PresentMatch(true),
        Some(matcher) => HeaderMatchSpecifier::StringMatch(matcher),
    };
    HeaderMatcher {
        name: name.to_string(),
        // A header that is not there is not the value either.
        treat_missing_header_as_empty: *invert && *value != StringMatch::Present,
        invert_match: *invert,
        header_match_specifier: Some(specifier),
    }
}

fn query_parameter(condition: &QueryMatch) -> QueryParameterMatcher {
    let QueryMatch { name, value } = condition;
    let specifier = match string_matcher(value) {
        None => QueryParameterMatchSpecifier::PresentMatch(true),
        Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
    };
    QueryParameterMatcher {
        name: name.to_string(),
        query_parameter_match_specifier: Some(specifier),
    }
}

fn string_matcher(value: &StringMatch) -> Option<StringMatcher> {
    let pattern = match value {
        StringMatch::Present => return None,
        StringMatch::Exact(text) => MatchPattern::Exact(text.to_string()),
        StringMatch::Prefix(text) => MatchPattern::Prefix(text.to_string()),
        StringMatch::Regex(pattern) => MatchPattern::SafeRegex(regex(pattern)),
    };
    Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() })
}

/// A regular expression in RE2's dialect, Envoy's only one.
pub(crate) fn regex(pattern: &Arc<str>) -> RegexMatcher {
    RegexMatcher { regex: pattern.to_string(), ..Default::default() }
}
