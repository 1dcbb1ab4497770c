//! Questions to BTF: where a struct's member lies, what a tracepoint's arguments are, what an enum's numbers mean.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use btf_rs::{Btf, Type};

/// Byte offset of a member, looked for in anonymous structs and unions as well.
pub(super) fn member(btf: &Btf, of: &str, name: &str) -> Result<u32> {
    let types = btf
        .resolve_types_by_name(of)
        .with_context(|| format!("the kernel's BTF has no struct {of}"))?;
    for kind in &types {
        if let Type::Struct(s) = kind
            && let Some(bits) = search(btf, s, name)?
        {
            return Ok(bits / 8);
        }
    }
    bail!("struct {of} of this kernel has no member {name}, which aksnet reads")
}

/// Byte offset of a member within a member whose struct has no name.
pub(super) fn nested(btf: &Btf, of: &str, member: &str, name: &str) -> Result<u32> {
    for kind in btf.resolve_types_by_name(of)? {
        let Type::Struct(outer) = kind else { continue };
        for m in &outer.members {
            if btf.resolve_name(m).is_ok_and(|n| n == member)
                && let Type::Struct(inner) = btf.resolve_chained_type(m)?
                && let Some(bits) = search(btf, &inner, name)?
            {
                return Ok(bits / 8);
            }
        }
    }
    bail!("struct {of} of this kernel has no member {member}.{name}, which aksnet reads")
}

/// Whether there is a struct of this name, and not only the mention of one.
pub(super) fn has_struct(btf: &Btf, name: &str) -> bool {
    btf.resolve_types_by_name(name)
        .unwrap_or_default()
        .iter()
        .any(|kind| matches!(kind, Type::Struct(_)))
}

fn search(btf: &Btf, of: &btf_rs::Struct, name: &str) -> Result<Option<u32>> {
    for m in &of.members {
        let found = btf.resolve_name(m).unwrap_or_default();
        if found == name {
            return Ok(Some(m.bit_offset()));
        }
        if found.is_empty()
            && let Type::Struct(inner) | Type::Union(inner) = btf.resolve_chained_type(m)?
            && let Some(bits) = search(btf, &inner, name)?
        {
            return Ok(Some(m.bit_offset() + bits));
        }
    }
    Ok(None)
}

/// Type names of a tracepoint's arguments; `None` if the kernel has no such tracepoint.
pub(super) fn tracepoint_arguments(btf: &Btf, name: &str) -> Option<Vec<String>> {
    let types = btf
        .resolve_types_by_name(&format!("btf_trace_{name}"))
        .ok()?;
    let Type::Typedef(typedef) = types.first()? else {
        return None;
    };
    let Type::Ptr(pointer) = btf.resolve_chained_type(typedef).ok()? else {
        return None;
    };
    let Type::FuncProto(proto) = btf.resolve_chained_type(&pointer).ok()? else {
        return None;
    };
    let names = proto.parameters.iter().skip(1).map(|p| {
        let kind = btf.resolve_chained_type(p);
        kind.ok()
            .and_then(|t| t.as_btf_type().and_then(|t| btf.resolve_name(t).ok()))
            .unwrap_or_default()
    });
    Some(names.collect())
}

/// `enum skb_drop_reason`: number to name, in lower case without prefix.
pub(super) fn drop_reasons(btf: &Btf) -> BTreeMap<u32, String> {
    let mut reasons = BTreeMap::new();
    for kind in btf
        .resolve_types_by_name("skb_drop_reason")
        .unwrap_or_default()
    {
        if let Type::Enum(e) = kind {
            for m in &e.members {
                let Ok(name) = btf.resolve_name(m) else {
                    continue;
                };
                let short = name
                    .strip_prefix("SKB_DROP_REASON_")
                    .or_else(|| name.strip_prefix("SKB_"))
                    .unwrap_or(&name);
                if !matches!(short, "MAX" | "SUBSYS_MASK") {
                    reasons.insert(m.val(), short.to_ascii_lowercase());
                }
            }
        }
    }
    reasons
}
