//! How to get from the table in the kernel to the one that is wanted.
//!
//! What is there already and right stays: counters go on counting, base
//! chains stay hooked, so that no packet ever meets an empty one, and what
//! the operator put into a set of his own remains. Rules are always new.

use crate::ir::{Base, Chain, Object, Owner, Ruleset, Set};
use crate::live::{self, Hooked, Kind, Live};

/// One step of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    /// Make sure that the table is there.
    AddTable,
    /// Delete it with all it holds.
    DeleteTable,
    /// Delete all rules of the table.
    FlushRules,
    /// Delete a chain.
    DeleteChain(&'a str),
    /// Delete a set.
    DeleteSet(&'a str),
    /// Delete an object: name and `NFT_OBJECT_*`.
    DeleteObject(&'a str, u32),
    /// Add an object.
    AddObject(&'a Object),
    /// Add a set with its elements.
    AddSet(&'a Set),
    /// Delete all elements of a set and add those it should have.
    ReplaceElements(&'a Set),
    /// Add a chain, or set the policy of one that is there.
    AddChain(&'a Chain),
    /// Add all rules of a chain.
    AddRules(&'a Chain),
}

/// The steps that turn `live` into `ruleset`. Rules and elements of `live`
/// are not looked at.
#[must_use]
pub fn plan<'a>(live: &'a Live, ruleset: &'a Ruleset) -> Vec<Step<'a>> {
    // Flags (dormant, owned) and flowtables are not ours: start afresh.
    let keep = match live.table {
        None => return fresh(ruleset, vec![Step::AddTable]),
        Some(table) => table.flags == 0 && live.flowtables.is_empty(),
    };
    if !keep {
        let steps = vec![Step::AddTable, Step::DeleteTable, Step::AddTable];
        return fresh(ruleset, steps);
    }
    let mut steps = vec![Step::AddTable, Step::FlushRules];
    steps.extend(deletions(live, ruleset));
    steps.extend(objects(live, ruleset));
    steps.extend(sets(live, ruleset));
    steps.extend(chains(ruleset));
    steps
}

/// Steps that remove the table, whether or not it is there.
#[must_use]
pub fn removal() -> Vec<Step<'static>> {
    vec![Step::AddTable, Step::DeleteTable]
}

fn fresh<'a>(ruleset: &'a Ruleset, mut steps: Vec<Step<'a>>) -> Vec<Step<'a>> {
    steps.extend(ruleset.objects.iter().map(Step::AddObject));
    steps.extend(ruleset.sets.iter().map(Step::AddSet));
    steps.extend(chains(ruleset));
    steps
}

fn chains(ruleset: &Ruleset) -> impl Iterator<Item = Step<'_>> {
    let add = ruleset.chains.iter().map(Step::AddChain);
    add.chain(ruleset.chains.iter().map(Step::AddRules))
}

/// Chains before sets before objects: each may refer to the next.
fn deletions<'a>(live: &'a Live, ruleset: &'a Ruleset) -> impl Iterator<Item = Step<'a>> {
    let chains = live.chains.iter().filter(|have| {
        let mut wanted = ruleset.chains.iter();
        !wanted.any(|chain| same_chain(have, chain))
    });
    let sets = live
        .sets
        .iter()
        .filter(|have| !ruleset.sets.iter().any(|set| same_set(have, set)));
    let objects = live.objects.iter().filter(|have| {
        let mut wanted = ruleset.objects.iter();
        !wanted.any(|object| same_object(have, object))
    });
    let chains = chains.map(|chain| Step::DeleteChain(&chain.name));
    let sets = sets.map(|set| Step::DeleteSet(&set.name));
    let objects = objects.map(|object| Step::DeleteObject(&object.name, object.kind.number()));
    chains.chain(sets).chain(objects)
}

fn objects<'a>(live: &'a Live, ruleset: &'a Ruleset) -> impl Iterator<Item = Step<'a>> {
    let missing = ruleset.objects.iter().filter(|object| {
        let mut there = live.objects.iter();
        !there.any(|have| same_object(have, object))
    });
    missing.map(Step::AddObject)
}

fn sets<'a>(live: &'a Live, ruleset: &'a Ruleset) -> impl Iterator<Item = Step<'a>> {
    ruleset.sets.iter().filter_map(|set| {
        let there = live.sets.iter().any(|have| same_set(have, set));
        match (there, set.owner) {
            (false, _) => Some(Step::AddSet(set)),
            (true, Owner::Policy) => Some(Step::ReplaceElements(set)),
            (true, Owner::Operator) => None,
        }
    })
}

impl Kind {
    /// `NFT_OBJECT_*`.
    #[must_use]
    pub fn number(&self) -> u32 {
        match self {
            Self::Known(kind) => kind.number(),
            Self::Other(number) => *number,
        }
    }
}

/// Same name and settings; what it has counted does not matter.
#[must_use]
pub fn same_object(have: &live::Object, wanted: &Object) -> bool {
    have.name == wanted.name && matches!(&have.kind, Kind::Known(kind) if *kind == wanted.kind)
}

/// Same name and type, whatever its elements.
#[must_use]
pub fn same_set(have: &live::Set, wanted: &Set) -> bool {
    have.name == wanted.name && have.key == Some(wanted.key) && have.timeout == wanted.timeout
}

/// Same name and hook, whatever its policy and rules: the policy of a chain
/// can be changed in place.
#[must_use]
pub fn same_chain(have: &live::Chain, wanted: &Chain) -> bool {
    let place = |base: Base| (base.kind, base.hook, base.priority);
    have.name == wanted.name
        && match (have.base, wanted.base) {
            (Hooked::No, None) => true,
            (Hooked::Known(have), Some(wanted)) => place(have) == place(wanted),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::ObjectKind;
    use crate::lower::lower;
    use crate::policy::Policy;
    use crate::policy::addresses::AddressSets;

    fn ruleset(policy: &str) -> Ruleset {
        let policy = Policy::parse(policy).expect("valid policy");
        let addresses = AddressSets::collect(&policy, std::collections::BTreeMap::new());
        lower(&policy, addresses)
    }

    fn live_of(ruleset: &Ruleset) -> Live {
        let object = |object: &Object| live::Object {
            name: object.name.clone(),
            kind: Kind::Known(object.kind.clone()),
            handle: 1,
            uses: 1,
            count: None,
        };
        let set = |set: &Set| live::Set {
            name: set.name.clone(),
            key: Some(set.key),
            timeout: set.timeout,
            handle: 1,
            elements: set.elements.clone(),
            others: Vec::new(),
        };
        let chain = |chain: &Chain| live::Chain {
            name: chain.name.clone(),
            base: chain.base.map_or(Hooked::No, Hooked::Known),
            handle: 1,
            rules: Vec::new(),
        };
        Live {
            table: Some(live::Table::default()),
            objects: ruleset.objects.iter().map(object).collect(),
            sets: ruleset.sets.iter().map(set).collect(),
            chains: ruleset.chains.iter().map(chain).collect(),
            flowtables: Vec::new(),
        }
    }

    const FIREWALL: &str = "[firewall]\n[addresses.a]\nelements = [\"10.0.0.1\"]\n";

    #[test]
    fn reload_of_the_same_policy_deletes_nothing_but_rules_and_elements() {
        let wanted = ruleset(FIREWALL);
        let live = live_of(&wanted);
        for step in plan(&live, &wanted) {
            let kept = matches!(
                step,
                Step::AddTable
                    | Step::FlushRules
                    | Step::ReplaceElements(_)
                    | Step::AddChain(_)
                    | Step::AddRules(_)
            );
            assert!(kept, "{step:?}");
        }
    }

    #[test]
    fn what_changed_is_deleted_before_it_is_added() {
        let wanted = ruleset("[[helper]]\ntype = \"other\"\n");
        let live = live_of(&ruleset(""));
        let steps = plan(&live, &wanted);
        let delete = steps
            .iter()
            .position(|step| *step == Step::DeleteObject("ftp", 3));
        let add = steps.iter().position(|step| {
            matches!(step, Step::AddObject(Object { kind: ObjectKind::CtHelper { helper }, .. })
                if helper == "other")
        });
        assert!(delete < add && delete.is_some(), "{steps:?}");
    }

    #[test]
    fn table_that_someone_made_dormant_is_replaced() {
        let wanted = ruleset("");
        let mut live = live_of(&wanted);
        live.table = Some(live::Table {
            handle: 1,
            flags: 1,
        });
        assert!(plan(&live, &wanted).contains(&Step::DeleteTable));
    }
}
