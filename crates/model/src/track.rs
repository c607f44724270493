//! Tracked queries: what was computed, what it read, and what must be computed again.
//!
//! A query is a key and a pure function from a `View` to a value. The `View` notes every fact that
//! the function reads: a row, the members of an index bucket, or the value of another query. After
//! a batch of changes the facts that differ are known; the queries that read one of them run
//! again, lowest level first. A query whose new value equals its old one stops there: nobody who
//! read it is run. So the cost of a batch follows what differs, not what exists.
//!
//! Worked through: a weight changes in rule list R of 1,000. The snapshot says `Row(R)`. Readers of
//! `Row(R)` are, by level: `RulesHead(R)` (hosts and gateways), `Outcome(R)` (clusters of its
//! destinations), `LintRules(R)` and the virtual host made of R. The first three give the value
//! they gave before, so the scope that read them is left alone. The virtual host differs: one
//! resource is reported. Four queries ran.
//!
//! Levels make this right without a search: a query reads only lower levels, so when it runs
//! everything it may ask is up to date, and it runs once per batch.
//!
//! **Invariant:** a value depends on nothing but the facts noted for it; a fact that nobody reads
//! any more has no entry.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use crate::resolve::Key;
use crate::snapshot::{Facts, IndexKey, RowId, Snapshot};

/// Something that a query can read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fact {
    /// The content of a row, or that it is not there.
    Row(RowId),
    /// Which rows an index bucket holds.
    Members(IndexKey),
    /// The value of a query.
    Value(NodeId),
}

/// Names a query that has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(u64);

/// A pure function of what its key and the view say.
pub(crate) trait Query: Clone {
    /// Its value; equality is what cuts off.
    type Value: PartialEq + Send + Sync + 'static;
    /// Run it.
    fn run(&self, view: &View<'_>) -> Self::Value;
    /// Its key among those of all queries.
    fn key(&self) -> Key;
}

/// A value of any query.
pub(crate) type AnyValue = Arc<dyn Any + Send + Sync>;

struct Node {
    key: Key,
    value: AnyValue,
    reads: HashSet<Fact>,
}

/// A query that ran again.
#[derive(Clone, Debug)]
pub struct Ran {
    pub(crate) key: Key,
    /// Whether its value is another one; if not, who read it was left alone.
    pub differs: bool,
}

/// Values and who read what.
#[derive(Default)]
pub(crate) struct Graph {
    ids: RefCell<HashMap<Key, NodeId>>,
    nodes: RefCell<BTreeMap<NodeId, Node>>,
    readers: RefCell<HashMap<Fact, BTreeSet<NodeId>>>,
    next: RefCell<u64>,
    /// Queries that are wanted for themselves.
    roots: RefCell<HashSet<NodeId>>,
    /// Queries that lost a reader, or were never read: to be looked at by `sweep`.
    suspects: RefCell<BTreeSet<NodeId>>,
}

/// The only window onto the snapshot and onto other queries.
pub(crate) struct View<'a> {
    pub(crate) snapshot: &'a Snapshot,
    graph: &'a Graph,
    level: u8,
    reads: RefCell<HashSet<Fact>>,
}

// === impl Ran ===

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.key)
    }
}

// === impl View ===

impl View<'_> {
    /// Note that a fact was read.
    pub(crate) fn note(&self, fact: Fact) {
        self.reads.borrow_mut().insert(fact);
    }

    /// The value of another query, of a lower level.
    pub(crate) fn get<Q: Query>(&self, query: &Q) -> Arc<Q::Value> {
        let key = query.key();
        debug_assert!(key.level() < self.level, "{key:?} is not below level {}", self.level);
        let (id, value) = self.graph.fetch(self.snapshot, query, key);
        self.note(Fact::Value(id));
        value
    }
}

// === impl Graph ===

impl Graph {
    /// The value of a query that is wanted for itself, until `release`.
    pub(crate) fn want<Q: Query>(&self, snapshot: &Snapshot, query: &Q) -> Arc<Q::Value> {
        let (id, value) = self.fetch(snapshot, query, query.key());
        self.roots.borrow_mut().insert(id);
        value
    }

    /// The value of a query that is wanted already.
    pub(crate) fn peek<Q: Query>(&self, query: &Q) -> Option<Arc<Q::Value>> {
        let id = *self.ids.borrow().get(&query.key())?;
        let value = Arc::clone(&self.nodes.borrow().get(&id)?.value);
        value.downcast().ok()
    }

    /// A query is not wanted for itself any more.
    pub(crate) fn release(&self, key: &Key) {
        if let Some(id) = self.ids.borrow().get(key)
            && self.roots.borrow_mut().remove(id)
        {
            self.suspects.borrow_mut().insert(*id);
        }
    }

    /// Run again what read a fact that differs. Returns what ran, in order, and whether its value
    /// differs now.
    pub(crate) fn propagate(&self, snapshot: &Snapshot, facts: Facts) -> Vec<Ran> {
        let mut due: BTreeSet<(u8, NodeId)> = BTreeSet::new();
        let rows = facts.rows.into_iter().map(Fact::Row);
        for fact in rows.chain(facts.members.into_iter().map(Fact::Members)) {
            self.queue_readers(&fact, &mut due);
        }
        let mut ran = Vec::new();
        while let Some((level, id)) = due.pop_first() {
            let found = self.nodes.borrow().get(&id).map(|n| (n.key.clone(), n.value.clone()));
            let Some((key, old)) = found else { continue };
            let view = self.view(snapshot, level);
            let (new, differs) = key.rerun(&view, &old);
            self.set_reads(id, view.reads.into_inner());
            if let Some(node) = self.nodes.borrow_mut().get_mut(&id) {
                node.value = new;
            }
            if differs {
                self.queue_readers(&Fact::Value(id), &mut due);
            }
            ran.push(Ran { key, differs });
        }
        ran
    }

    /// Forget what nobody reads or wants.
    pub(crate) fn sweep(&self) {
        loop {
            let Some(id) = self.suspects.borrow_mut().pop_first() else { return };
            let read = self.readers.borrow().contains_key(&Fact::Value(id));
            if read || self.roots.borrow().contains(&id) {
                continue;
            }
            self.set_reads(id, HashSet::default());
            if let Some(node) = self.nodes.borrow_mut().remove(&id) {
                self.ids.borrow_mut().remove(&node.key);
            }
        }
    }

    /// Facts that `other` noted for a query and this graph did not.
    pub(crate) fn missed(&self, other: &Self, key: &Key) -> Vec<Fact> {
        let reads = |graph: &Self| {
            let id = *graph.ids.borrow().get(key)?;
            Some(graph.nodes.borrow().get(&id)?.reads.clone())
        };
        let mine = reads(self).unwrap_or_default();
        let theirs = reads(other).unwrap_or_default();
        let outside = |fact: &&Fact| !matches!(fact, Fact::Value(_)) && !mine.contains(fact);
        theirs.iter().filter(outside).cloned().collect()
    }

    /// Number of values kept and of facts that have readers.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.ids.borrow().len().max(self.nodes.borrow().len()), self.readers.borrow().len())
    }

    fn view<'a>(&'a self, snapshot: &'a Snapshot, level: u8) -> View<'a> {
        View { snapshot, graph: self, level, reads: RefCell::default() }
    }

    fn fetch<Q: Query>(&self, snapshot: &Snapshot, query: &Q, key: Key) -> (NodeId, Arc<Q::Value>) {
        let known = self.ids.borrow().get(&key).copied();
        if let Some(id) = known {
            let value = self.nodes.borrow().get(&id).map(|n| Arc::clone(&n.value));
            if let Some(Ok(value)) = value.map(Arc::downcast::<Q::Value>) {
                return (id, value);
            }
        }
        let view = self.view(snapshot, key.level());
        let value = Arc::new(query.run(&view));
        let id = known.unwrap_or_else(|| {
            let mut next = self.next.borrow_mut();
            *next += 1;
            NodeId(*next)
        });
        self.ids.borrow_mut().insert(key.clone(), id);
        let erased: AnyValue = value.clone();
        let node = Node { key, value: erased, reads: HashSet::default() };
        self.nodes.borrow_mut().insert(id, node);
        self.set_reads(id, view.reads.into_inner());
        self.suspects.borrow_mut().insert(id);
        (id, value)
    }

    fn queue_readers(&self, fact: &Fact, due: &mut BTreeSet<(u8, NodeId)>) {
        let readers = self.readers.borrow();
        let nodes = self.nodes.borrow();
        for id in readers.get(fact).into_iter().flatten() {
            if let Some(node) = nodes.get(id) {
                due.insert((node.key.level(), *id));
            }
        }
    }

    /// Replace what a node read, in both directions.
    fn set_reads(&self, id: NodeId, new: HashSet<Fact>) {
        let mut nodes = self.nodes.borrow_mut();
        let Some(node) = nodes.get_mut(&id) else { return };
        let mut readers = self.readers.borrow_mut();
        for fact in new.difference(&node.reads) {
            readers.entry(fact.clone()).or_default().insert(id);
        }
        for fact in node.reads.difference(&new) {
            let Some(of_fact) = readers.get_mut(fact) else { continue };
            of_fact.remove(&id);
            if of_fact.is_empty() {
                readers.remove(fact);
                if let Fact::Value(read) = fact {
                    self.suspects.borrow_mut().insert(*read);
                }
            }
        }
        node.reads = new;
    }
}

/// Run a query again. The new value is kept even when it equals the old one: origins take no part
/// in equality and may be other ones.
pub(crate) fn rerun<Q: Query>(query: &Q, view: &View<'_>, old: &AnyValue) -> (AnyValue, bool) {
    let new = query.run(view);
    let differs = old.downcast_ref::<Q::Value>().is_none_or(|old| *old != new);
    (Arc::new(new), differs)
}
