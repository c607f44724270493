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
//! Facts and queries are nodes of one graph, known by small numbers: a mesh of ten thousand services
//! has a million reads, and each is four bytes at either end.
//!
//! **Invariant:** a value depends on nothing but the facts noted for it; a fact that nobody reads
//! any more has no node.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use foldhash::HashSet;
use foldhash::fast::FixedState;
use hashbrown::HashTable;

use crate::resolve::Key;
use crate::snapshot::{Facts, IndexKey, RowId, Snapshot};

/// What a query can read of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fact {
    /// The content of a row, or that it is not there.
    Row(RowId),
    /// Which rows an index bucket holds.
    Members(IndexKey),
}

/// Names a fact that is read, or a query that has a value. Free numbers are given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct NodeId(u32);

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

/// A query that ran again.
#[derive(Clone, Debug)]
pub struct Ran {
    pub(crate) key: Arc<Key>,
    /// Whether its value is another one; if not, who read it was left alone.
    pub differs: bool,
}

/// Values and who read what.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: RefCell<Nodes>,
}

/// All nodes, found by number, by fact and by key.
#[derive(Default)]
struct Nodes {
    slots: Vec<Option<Node>>,
    free: Vec<NodeId>,
    facts: HashTable<NodeId>,
    queries: HashTable<NodeId>,
    hasher: FixedState,
    /// Queries that lost a reader, or were never read: to be looked at by `sweep`.
    suspects: BTreeSet<NodeId>,
}

struct Node {
    what: What,
    readers: Readers,
}

/// What a node is.
enum What {
    Fact(Fact),
    Query {
        key: Arc<Key>,
        value: AnyValue,
        /// Sorted.
        reads: Box<[NodeId]>,
        /// Whether it is wanted for itself.
        root: bool,
    },
}

/// Who read a node: nearly always a few, now and then all there are.
enum Readers {
    Few(Vec<NodeId>),
    Many(HashSet<NodeId>),
}

/// The only window onto the snapshot and onto other queries.
pub(crate) struct View<'a> {
    pub(crate) snapshot: &'a Snapshot,
    graph: &'a Graph,
    level: u8,
    reads: RefCell<Vec<NodeId>>,
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
        let id = self.graph.nodes.borrow_mut().fact(fact);
        self.reads.borrow_mut().push(id);
    }

    /// The value of another query, of a lower level.
    pub(crate) fn get<Q: Query>(&self, query: &Q) -> Arc<Q::Value> {
        let key = query.key();
        debug_assert!(key.level() < self.level, "{key:?} is not below level {}", self.level);
        let (id, value) = self.graph.fetch(self.snapshot, query, key);
        self.note_value(id);
        value
    }

    fn note_value(&self, id: NodeId) {
        self.reads.borrow_mut().push(id);
    }

    /// What was read, sorted, each once.
    fn into_reads(self) -> Box<[NodeId]> {
        let mut reads = self.reads.into_inner();
        reads.sort_unstable();
        reads.dedup();
        reads.into_boxed_slice()
    }
}

// === impl Graph ===

impl Graph {
    /// The value of a query that is wanted for itself, until `release`.
    pub(crate) fn want<Q: Query>(&self, snapshot: &Snapshot, query: &Q) -> Arc<Q::Value> {
        let (id, value) = self.fetch(snapshot, query, query.key());
        self.nodes.borrow_mut().set_root(id, true);
        value
    }

    /// The value of a query that is wanted already.
    pub(crate) fn peek<Q: Query>(&self, query: &Q) -> Option<Arc<Q::Value>> {
        let nodes = self.nodes.borrow();
        let value = Arc::clone(nodes.value(nodes.query(&query.key())?)?);
        value.downcast().ok()
    }

    /// A query is not wanted for itself any more.
    pub(crate) fn release(&self, key: &Key) {
        let mut nodes = self.nodes.borrow_mut();
        if let Some(id) = nodes.query(key)
            && nodes.set_root(id, false)
        {
            nodes.suspects.insert(id);
        }
    }

    /// Run again what read a fact that differs. Returns what ran, in order, and whether its value
    /// differs now.
    pub(crate) fn propagate(&self, snapshot: &Snapshot, facts: Facts) -> Vec<Ran> {
        let mut due: BTreeSet<(u8, NodeId)> = BTreeSet::new();
        let rows = facts.rows.into_iter().map(Fact::Row);
        for fact in rows.chain(facts.members.into_iter().map(Fact::Members)) {
            let nodes = self.nodes.borrow();
            if let Some(id) = nodes.known_fact(&fact) {
                nodes.queue_readers(id, &mut due);
            }
        }
        let mut ran = Vec::new();
        while let Some((level, id)) = due.pop_first() {
            let Some((key, old)) = self.nodes.borrow().query_at(id) else { continue };
            let view = self.view(snapshot, level);
            let (new, differs) = key.rerun(&view, &old);
            let reads = view.into_reads();
            let mut nodes = self.nodes.borrow_mut();
            nodes.set(id, Some(new), reads);
            if differs {
                nodes.queue_readers(id, &mut due);
            }
            ran.push(Ran { key, differs });
        }
        ran
    }

    /// Forget what nobody reads or wants.
    pub(crate) fn sweep(&self) {
        let mut nodes = self.nodes.borrow_mut();
        while let Some(id) = nodes.suspects.pop_first() {
            if nodes.is_wanted(id) {
                continue;
            }
            nodes.set(id, None, Box::default());
            nodes.forget(id);
        }
    }

    /// Facts that `other` noted for a query and this graph did not.
    pub(crate) fn missed(&self, other: &Self, key: &Key) -> Vec<Fact> {
        let mine = self.nodes.borrow().facts_of(key);
        let theirs = other.nodes.borrow().facts_of(key);
        theirs.into_iter().filter(|fact| !mine.contains(fact)).collect()
    }

    /// Number of values kept and of facts that have readers.
    pub(crate) fn size(&self) -> (usize, usize) {
        let nodes = self.nodes.borrow();
        (nodes.queries.len(), nodes.facts.len())
    }

    fn view<'a>(&'a self, snapshot: &'a Snapshot, level: u8) -> View<'a> {
        View { snapshot, graph: self, level, reads: RefCell::default() }
    }

    fn fetch<Q: Query>(&self, snapshot: &Snapshot, query: &Q, key: Key) -> (NodeId, Arc<Q::Value>) {
        let known = {
            let nodes = self.nodes.borrow();
            let id = nodes.query(&key);
            id.and_then(|id| Some((id, Arc::clone(nodes.value(id)?))))
        };
        if let Some((id, Ok(value))) = known.map(|(id, value)| (id, value.downcast::<Q::Value>())) {
            return (id, value);
        }
        let view = self.view(snapshot, key.level());
        let value = Arc::new(query.run(&view));
        let reads = view.into_reads();
        let erased: AnyValue = value.clone();
        let mut nodes = self.nodes.borrow_mut();
        let id = nodes.insert_query(key, erased);
        nodes.set(id, None, reads);
        nodes.suspects.insert(id);
        (id, value)
    }
}

// === impl Nodes ===

impl Nodes {
    fn node(&self, id: NodeId) -> Option<&Node> {
        self.slots.get(id.0 as usize)?.as_ref()
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    fn hash_of(hasher: &FixedState, what: &What) -> u64 {
        match what {
            What::Fact(fact) => hasher.hash_one(fact),
            What::Query { key, .. } => hasher.hash_one(&**key),
        }
    }

    fn known_fact(&self, fact: &Fact) -> Option<NodeId> {
        let is = |id: &NodeId| matches!(self.node(*id), Some(Node { what: What::Fact(known), .. }) if known == fact);
        self.facts.find(self.hasher.hash_one(fact), is).copied()
    }

    fn query(&self, key: &Key) -> Option<NodeId> {
        let is = |id: &NodeId| {
            let node = self.node(*id);
            matches!(node, Some(Node { what: What::Query { key: known, .. }, .. }) if **known == *key)
        };
        self.queries.find(self.hasher.hash_one(key), is).copied()
    }

    fn query_at(&self, id: NodeId) -> Option<(Arc<Key>, AnyValue)> {
        match &self.node(id)?.what {
            What::Query { key, value, .. } => Some((Arc::clone(key), Arc::clone(value))),
            What::Fact(_) => None,
        }
    }

    fn value(&self, id: NodeId) -> Option<&AnyValue> {
        match &self.node(id)?.what {
            What::Query { value, .. } => Some(value),
            What::Fact(_) => None,
        }
    }

    /// The node of a fact that is about to be read.
    fn fact(&mut self, fact: Fact) -> NodeId {
        match self.known_fact(&fact) {
            Some(id) => id,
            None => self.insert(What::Fact(fact)),
        }
    }

    fn insert_query(&mut self, key: Key, value: AnyValue) -> NodeId {
        self.insert(What::Query { key: Arc::new(key), value, reads: Box::default(), root: false })
    }

    fn insert(&mut self, what: What) -> NodeId {
        let hash = Self::hash_of(&self.hasher, &what);
        let is_fact = matches!(what, What::Fact(_));
        let node = Some(Node { what, readers: Readers::Few(Vec::new()) });
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id.0 as usize] = node;
                id
            }
            None => {
                self.slots.push(node);
                NodeId(u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX))
            }
        };
        let Self { slots, hasher, facts, queries, .. } = self;
        let table = if is_fact { facts } else { queries };
        table.insert_unique(hash, id, |id| {
            let node = slots.get(id.0 as usize).and_then(Option::as_ref);
            node.map_or(0, |node| Self::hash_of(hasher, &node.what))
        });
        id
    }

    fn forget(&mut self, id: NodeId) {
        let Some(node) = self.slots.get_mut(id.0 as usize).and_then(Option::take) else { return };
        let hash = Self::hash_of(&self.hasher, &node.what);
        let table = match node.what {
            What::Fact(_) => &mut self.facts,
            What::Query { .. } => &mut self.queries,
        };
        if let Ok(entry) = table.find_entry(hash, |known| *known == id) {
            entry.remove();
        }
        self.free.push(id);
    }

    /// Say whether a query is wanted for itself. Returns whether it was.
    fn set_root(&mut self, id: NodeId, wanted: bool) -> bool {
        match self.node_mut(id).map(|node| &mut node.what) {
            Some(What::Query { root, .. }) => std::mem::replace(root, wanted),
            _ => false,
        }
    }

    fn is_wanted(&self, id: NodeId) -> bool {
        let Some(node) = self.node(id) else { return true };
        !node.readers.is_empty() || !matches!(node.what, What::Query { root: false, .. })
    }

    fn queue_readers(&self, id: NodeId, due: &mut BTreeSet<(u8, NodeId)>) {
        let Some(node) = self.node(id) else { return };
        node.readers.for_each(&mut |reader| {
            if let Some(Node { what: What::Query { key, .. }, .. }) = self.node(reader) {
                due.insert((key.level(), reader));
            }
        });
    }

    /// Replace what a query read, in both directions, and its value where there is another.
    fn set(&mut self, id: NodeId, new_value: Option<AnyValue>, new: Box<[NodeId]>) {
        let Some(What::Query { reads, value, .. }) = self.node_mut(id).map(|n| &mut n.what) else {
            return;
        };
        if let Some(new_value) = new_value {
            *value = new_value;
        }
        let old = std::mem::take(reads);
        for read in new.iter().filter(|read| old.binary_search(read).is_err()) {
            if let Some(node) = self.node_mut(*read) {
                node.readers.insert(id);
            }
        }
        for read in old.iter().filter(|read| new.binary_search(read).is_err()) {
            let Some(node) = self.node_mut(*read) else { continue };
            node.readers.remove(id);
            if node.readers.is_empty() {
                match node.what {
                    What::Fact(_) => self.forget(*read),
                    What::Query { .. } => drop(self.suspects.insert(*read)),
                }
            }
        }
        if let Some(What::Query { reads, .. }) = self.node_mut(id).map(|n| &mut n.what) {
            *reads = new;
        }
    }

    fn facts_of(&self, key: &Key) -> HashSet<Fact> {
        let node = self.query(key).and_then(|id| self.node(id));
        let Some(What::Query { reads, .. }) = node.map(|node| &node.what) else {
            return HashSet::default();
        };
        let fact = |id: &NodeId| match &self.node(*id)?.what {
            What::Fact(fact) => Some(fact.clone()),
            What::Query { .. } => None,
        };
        reads.iter().filter_map(fact).collect()
    }
}

// === impl Readers ===

impl Readers {
    /// More than these are looked up, not searched.
    const FEW: usize = 16;

    fn is_empty(&self) -> bool {
        match self {
            Self::Few(ids) => ids.is_empty(),
            Self::Many(ids) => ids.is_empty(),
        }
    }

    fn insert(&mut self, id: NodeId) {
        match self {
            Self::Few(ids) if ids.len() < Self::FEW => ids.push(id),
            Self::Few(ids) => {
                let all = ids.drain(..).chain([id]).collect();
                *self = Self::Many(all);
            }
            Self::Many(ids) => drop(ids.insert(id)),
        }
    }

    fn remove(&mut self, id: NodeId) {
        match self {
            Self::Few(ids) => ids.retain(|known| *known != id),
            Self::Many(ids) => drop(ids.remove(&id)),
        }
    }

    fn for_each(&self, visit: &mut dyn FnMut(NodeId)) {
        match self {
            Self::Few(ids) => ids.iter().copied().for_each(visit),
            Self::Many(ids) => ids.iter().copied().for_each(visit),
        }
    }
}

/// Run a query again. The new value is kept even when it equals the old one: origins take no part
/// in equality and may be other ones.
pub(crate) fn rerun<Q: Query>(query: &Q, view: &View<'_>, old: &AnyValue) -> (AnyValue, bool) {
    let new = query.run(view);
    let differs = old.downcast_ref::<Q::Value>().is_none_or(|old| *old != new);
    (Arc::new(new), differs)
}
