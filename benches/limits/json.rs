//! The table for machines.

use serde_json::{Value, json};

use crate::table::Row;
use crate::timing::Sense;

/// Of all rows.
pub fn document(rows: &[Row]) -> String {
    let paths: Vec<Value> = rows.iter().map(path).collect();
    let counted: Vec<Value> = rows.iter().filter_map(instructions).collect();
    let document = json!({ "paths": paths, "instructions": counted });
    format!("{document:#}\n")
}

/// Three digits after the point are more than the noise.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn path(row: &Row) -> Value {
    json!({
        "path": row.path,
        "ours_ns": rounded(row.ours()),
        "limit_ns": rounded(row.limit()),
        "ratio": rounded(row.ratio.value),
        "lo": rounded(row.ratio.lo),
        "hi": rounded(row.ratio.hi),
        "aim": row.aim,
        "sense": match row.sense {
            Sense::Max => "max",
            Sense::Min => "min",
        },
        "gate": row.gate,
    })
}

fn instructions(row: &Row) -> Option<Value> {
    let (ours, limit) = row.steps?;
    Some(json!({ "path": row.path, "ours": rounded(ours), "limit": rounded(limit) }))
}
