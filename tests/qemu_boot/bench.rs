//! What papr-intc costs a guest: the same boot on QEMU's controllers and on ours, in turns, pair by pair.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::boot::Over;
use crate::lines::Said;
use crate::matrix::{Boot, Cpu, IcMode, Way};
use crate::statistics::{Ratio, median, ratio};

/// The time from QEMU's start to the guest's userland, which the guest does not know.
const BOOT: &str = "boot";

/// One kind of measurement: QEMU's value and ours, pair by pair.
#[derive(Clone, Debug, Default)]
pub struct Series {
    unit: String,
    pairs: Vec<(f64, f64)>,
}

impl Series {
    /// Rates are better the higher they are, times the lower.
    fn is_rate(&self) -> bool {
        self.unit == "per_second"
    }

    /// How much more it costs on ours than on QEMU's: 1.05 is 5 % slower, whatever is measured.
    fn cost(&self) -> Option<Ratio> {
        let turned = |&(stock, ours): &(f64, f64)| {
            if self.is_rate() {
                (ours, stock)
            } else {
                (stock, ours)
            }
        };
        let pairs: Vec<(f64, f64)> = self.pairs.iter().map(turned).collect();
        ratio(&pairs)
    }

    fn medians(&self) -> (f64, f64) {
        let (stock, ours): (Vec<f64>, Vec<f64>) = self.pairs.iter().copied().unzip();
        (median(&stock), median(&ours))
    }
}

/// The measurements of one ic-mode.
#[derive(Debug)]
pub struct Measured {
    pub mode: IcMode,
    series: BTreeMap<String, Series>,
}

impl Measured {
    pub fn new(mode: IcMode) -> Self {
        Self {
            mode,
            series: BTreeMap::new(),
        }
    }

    /// Takes a pair of good boots.
    pub fn add(&mut self, stock: &Over, ours: &Over) {
        let (stock, ours) = (figures(stock), figures(ours));
        for (name, (value, unit)) in stock {
            if let Some((other, _)) = ours.get(&name) {
                let series = self.series.entry(name).or_default();
                series.unit = unit;
                series.pairs.push((value, *other));
            }
        }
    }

    /// Lines of the table.
    pub fn rows(&self) -> Vec<String> {
        let row = |(name, series): (&String, &Series)| {
            let (stock, ours) = series.medians();
            let cost = series.cost().map_or("-".to_owned(), |c| {
                format!("{:.3}  ({:.3} to {:.3})", c.ratio, c.low, c.high)
            });
            let (mode, unit, pairs) = (self.mode.name(), &series.unit, series.pairs.len());
            columns([
                mode,
                name,
                unit,
                &figure(stock),
                &figure(ours),
                &pairs.to_string(),
                &cost,
            ])
        };
        self.series.iter().map(row).collect()
    }

    /// The same for programs, with every pair.
    pub fn json(&self) -> Value {
        let series = self.series.iter().map(|(name, series)| {
            let (stock, ours) = series.medians();
            let cost = series.cost();
            json!({
                "mode": self.mode.name(), "name": name, "unit": series.unit,
                "median_qemu": stock, "median_ours": ours, "pairs": series.pairs,
                "cost": cost.map(|c| c.ratio), "cost_low": cost.map(|c| c.low), "cost_high": cost.map(|c| c.high),
            })
        });
        series.collect()
    }
}

/// What a boot measured: value and unit by name.
fn figures(over: &Over) -> BTreeMap<String, (f64, String)> {
    let mut figures = BTreeMap::new();
    if let Some(up) = over.record.up {
        figures.insert(BOOT.to_owned(), (up.as_secs_f64(), "s".to_owned()));
    }
    for said in &over.record.said {
        if let Said::Figure { name, value, unit } = said {
            figures.insert(name.clone(), (*value, unit.clone()));
        }
    }
    figures
}

/// The two boots of a pair; each goes first in every second pair.
pub fn pair(mode: IcMode, vcpus: u32, cpu: Cpu, n: u32) -> [Boot; 2] {
    let boot = |way| Boot {
        ic_mode: mode,
        vcpus,
        cpu,
        way,
    };
    if n.is_multiple_of(2) {
        [boot(Way::Stock), boot(Way::Plain)]
    } else {
        [boot(Way::Plain), boot(Way::Stock)]
    }
}

/// Titles of the columns of [`Measured::rows`].
pub fn titles() -> String {
    columns([
        "mode",
        "measured",
        "unit",
        "QEMU's",
        "ours",
        "pairs",
        "cost of ours (95 %)",
    ])
}

/// Writes every measurement to a file.
pub fn write(path: &std::path::Path, measured: &[Measured]) -> Result<(), String> {
    let all: Vec<Value> = measured.iter().map(Measured::json).collect();
    fs::write(path, format!("{}\n", Value::from(all)))
        .map_err(|e| format!("{}: {e}", path.display()))
}

fn columns(cells: [&str; 7]) -> String {
    let [mode, name, unit, stock, ours, pairs, cost] = cells;
    format!("{mode:<5} {name:<22} {unit:<10} {stock:>11} {ours:>11} {pairs:>6}  {cost}")
}

/// With as many digits as say something.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1_000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(unit: &str, pairs: &[(f64, f64)]) -> Series {
        Series {
            unit: unit.to_owned(),
            pairs: pairs.to_vec(),
        }
    }

    #[test]
    fn more_than_one_is_slower_for_times_and_for_rates() {
        let time = series("s", &[(10.0, 11.0); 3]);
        let rate = series("per_second", &[(1_100.0, 1_000.0); 3]);
        for cost in [time.cost(), rate.cost()] {
            assert!((cost.unwrap().ratio - 1.1).abs() < 1e-9, "{cost:?}");
        }
    }

    #[test]
    fn either_side_goes_first_in_turns() {
        let first = |n| pair(IcMode::Xive, 2, Cpu::Power9, n)[0].way;
        assert_eq!(
            [first(0), first(1), first(2)],
            [Way::Stock, Way::Plain, Way::Stock]
        );
    }
}
