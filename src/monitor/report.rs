//! A guest's JSON object as a few aligned lines for people.

use std::fmt::Write;

use serde_json::Value;

/// A guest in at most a dozen lines.
pub fn text(guest: &Value) -> String {
    let mut out = String::new();
    let mut row = |name: &str, value: String| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<12} {value}");
    };
    row("state", state(guest));
    if guest["mode"].is_null() {
        return out;
    }
    let n = |key: &str| guest[key].as_u64().unwrap_or(0);
    let s = |key: &str| guest[key].as_str().unwrap_or("?").to_owned();
    row("guest", s("name"));
    let pid = match n("daemon_pid") {
        0 => "none known".to_owned(),
        pid => format!("pid {pid}"),
    };
    row(
        "daemon",
        format!(
            "{pid}, generation {}, {} restarts",
            n("generation"),
            n("restarts")
        ),
    );
    row("last outage", outage(&guest["last_outage"]));
    row(
        "controller",
        format!(
            "{} of {}, gate {}, run by the {}",
            s("mode"),
            s("ic_mode"),
            s("gate"),
            s("executor")
        ),
    );
    let (memory, own) = (&guest["numbers"]["memory"], &guest["numbers"]["front_end"]);
    row(
        "numbers",
        format!(
            "memory layout {} plane {}; front-end protocol {} layout {} plane {}",
            memory["layout"], memory["plane"], own["protocol"], own["layout"], own["plane"]
        ),
    );
    row(
        "sources",
        format!(
            "{} claimed, {} of them level",
            n("sources_claimed"),
            n("sources_lsi")
        ),
    );
    row(
        "queues",
        format!(
            "{} live; {} interrupts delivered",
            n("queues_live"),
            n("delivered")
        ),
    );
    row("vCPUs", vcpus(guest));
    out
}

fn state(guest: &Value) -> String {
    let state = guest["state"]
        .as_str()
        .unwrap_or(match guest["serving"].as_bool() {
            Some(true) if guest["quiesce_depth"] != 0 => "quiesced",
            Some(true) => "serving",
            _ => "not serving",
        });
    let mut text = match state {
        "quiesced" => format!("quiesced, depth {}", guest["quiesce_depth"]),
        other => other.to_owned(),
    };
    let time = guest["for_ms"].as_u64().or(guest["uptime_ms"].as_u64());
    if let Some(ms) = time {
        let _ = write!(text, " for {}.{:03} s", ms / 1000, ms % 1000);
    }
    if let Some(why) = guest["why"].as_str() {
        let _ = write!(text, ": {why}");
    }
    text
}

fn outage(outage: &Value) -> String {
    if outage.is_null() {
        return "none".to_owned();
    }
    let mut text = outage["reason"].as_str().unwrap_or("?").to_owned();
    for (key, name) in [("exit_code", "exit code"), ("signal", "signal")] {
        if let Some(n) = outage[key].as_u64() {
            let _ = write!(text, " ({name} {n})");
        }
    }
    match outage["length_us"].as_u64() {
        Some(us) => {
            let _ = write!(text, ", {}.{:03} ms", us / 1000, us % 1000);
        }
        None => text.push_str(", under way"),
    }
    let _ = write!(text, ", {} delivered meanwhile", outage["delivered"]);
    text
}

fn vcpus(guest: &Value) -> String {
    let empty = Vec::new();
    let all = guest["vcpus"].as_array().unwrap_or(&empty);
    let waiting = |v: &&Value| v["pending"].as_u64().unwrap_or(0);
    let total = all
        .iter()
        .fold(0u64, |sum, v| sum.wrapping_add(waiting(&v)));
    let mut text = format!(
        "{} connected, {} lines up, {total} sources pending",
        all.len(),
        guest["lines_up"]
    );
    if let Some(most) = all.iter().max_by_key(waiting).filter(|v| waiting(v) > 0) {
        let _ = write!(text, " (most: {} on {})", most["pending"], most["server"]);
    }
    text
}
