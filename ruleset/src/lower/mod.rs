//! From what the operator wants to the ruleset that does it.

use crate::ir::{
    Base, Chain, ChainType, Field, Hook, L4, Match, Object, ObjectKind, Op, Origin,
    Policy as BasePolicy, Rule, Ruleset, Scalar, Statement, Value,
};
use crate::policy::{Helper, Policy};

/// After conntrack (-200), which must have seen the packet, and before NAT
/// (-100): NAT reserves the room for sequence adjustments only if the helper
/// is already there (`nf_nat_setup_info`).
const AFTER_CONNTRACK_BEFORE_NAT: i32 = -150;

/// Lowers a policy.
#[must_use]
pub fn lower(policy: &Policy) -> Ruleset {
    Ruleset {
        table: policy.table.clone(),
        objects: policy.helper.iter().map(helper_object).collect(),
        sets: Vec::new(),
        chains: vec![
            assignment(policy, "helper_prerouting", Hook::Prerouting),
            assignment(policy, "helper_output", Hook::Output),
        ],
    }
}

fn helper_object(helper: &Helper) -> Object {
    Object {
        name: helper.name.clone(),
        kind: ObjectKind::CtHelper {
            helper: helper.kind.clone(),
        },
        why: None,
        origin: Origin::default(),
    }
}

fn assignment(policy: &Policy, name: &str, hook: Hook) -> Chain {
    Chain {
        name: name.to_owned(),
        base: Some(Base {
            kind: ChainType::Filter,
            hook,
            priority: AFTER_CONNTRACK_BEFORE_NAT,
            policy: BasePolicy::Accept,
        }),
        rules: policy.helper.iter().map(assign).collect(),
        why: Some("After conntrack and before NAT: the only place where it works.".to_owned()),
        origin: Origin::default(),
    }
}

fn assign(helper: &Helper) -> Rule {
    let ports = helper
        .ports
        .iter()
        .map(|port| Scalar::Number(u32::from(*port)));
    Rule {
        statements: vec![
            Statement::Match(Match {
                field: Field::Dport(L4::Tcp),
                op: Op::Eq,
                value: one_or_any(ports.collect()),
            }),
            Statement::CtHelperSet(helper.name.clone()),
        ],
        ..Rule::default()
    }
}

fn one_or_any(mut values: Vec<Scalar>) -> Value {
    if values.len() == 1 {
        return values.pop().map_or(Value::Any(Vec::new()), Value::One);
    }
    Value::Any(values)
}
