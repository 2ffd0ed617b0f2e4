//! The distributions behind the table, as SVG: a panel for each path, with the share of samples (upwards) that took
//! at most so long (to the right, logarithmic), ours and the limit's.

use std::fmt::Write;

use crate::table::{Row, Unit};

const COLUMNS: usize = 4;
const PANEL: (f64, f64) = (300.0, 190.0);
/// Of a panel: left, top, width, height.
const BOX: (f64, f64, f64, f64) = (16.0, 40.0, 268.0, 116.0);
/// A distribution of fewer samples is none.
const LEAST: usize = 9;
const OURS: &str = "#c0392b";
const LIMIT: &str = "#2c3e50";

/// Of all rows that are times.
pub fn svg(rows: &[Row]) -> String {
    let shown = |row: &&Row| row.unit == Unit::Nanoseconds && row.pairs.ours.len() >= LEAST;
    let shown: Vec<&Row> = rows.iter().filter(shown).collect();
    let lines = shown.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL.0 * COLUMNS as f64, PANEL.1 * lines as f64 + 24.0);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"16\" y=\"16\" font-size=\"12\">Share of samples that took at most so long: \
         <tspan fill=\"{OURS}\">papr-intc</tspan>, <tspan fill=\"{LIMIT}\">its raw limit</tspan></text>\n"
    );
    for (i, row) in shown.iter().enumerate() {
        let at = (
            PANEL.0 * (i % COLUMNS) as f64,
            PANEL.1 * (i / COLUMNS) as f64 + 24.0,
        );
        let _ = writeln!(out, "<g transform=\"translate({:.0} {:.0})\">", at.0, at.1);
        panel(&mut out, row);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

fn panel(out: &mut String, row: &Row) {
    let sorted = |values: &[f64]| {
        let mut values: Vec<f64> = values.iter().map(|v| v.max(0.1)).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let (ours, limit) = (sorted(&row.pairs.ours), sorted(&row.pairs.limit));
    let at = |of: &[f64], share: f64| of[((of.len() - 1) as f64 * share) as usize];
    let low = at(&ours, 0.01).min(at(&limit, 0.01)) * 0.8;
    let high = at(&ours, 0.99).max(at(&limit, 0.99)) * 1.25;
    let (left, top, width, height) = BOX;
    let x = |value: f64| left + width * (value / low).ln() / (high / low).ln();
    let y = |share: f64| top + height * (1.0 - share);
    let _ = writeln!(
        out,
        "<text x=\"{left}\" y=\"{}\">{}</text>\n<text x=\"{left}\" y=\"{}\" fill=\"#777\">{:.2}x</text>\n\
         <rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#ccc\"/>",
        top - 20.0,
        escaped(&row.path),
        top - 8.0,
        row.ratio.value,
    );
    for tick in ticks(low, high) {
        let _ = writeln!(
            out,
            "<path d=\"M{0:.1} {top}v{height}\" stroke=\"#eee\"/>\
             <text x=\"{0:.1}\" y=\"{1}\" text-anchor=\"middle\" fill=\"#777\">{2}</text>",
            x(tick),
            top + height + 12.0,
            duration(tick)
        );
    }
    for (values, colour) in [(limit, LIMIT), (ours, OURS)] {
        let points: Vec<String> = (1..100)
            .map(|percent| {
                let share = f64::from(percent) / 100.0;
                format!("{:.1},{:.1}", x(at(&values, share)), y(share))
            })
            .collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>",
            points.join(" ")
        );
    }
}

/// 1, 2, 5 of each power of ten between two values; only 1 if there are many.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let powers = (0..12).map(|p| 10f64.powi(p));
    let all: Vec<f64> = powers
        .flat_map(|p| [p, 2.0 * p, 5.0 * p])
        .filter(|t| (low..=high).contains(t))
        .collect();
    if all.len() <= 6 {
        return all;
    }
    let whole = |t: &f64| t.log10().fract().abs() < 1e-9;
    all.into_iter().filter(whole).collect()
}

fn duration(ns: f64) -> String {
    match ns {
        ..1e3 => format!("{ns} ns"),
        ..1e6 => format!("{} us", ns / 1e3),
        _ => format!("{} ms", ns / 1e6),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
