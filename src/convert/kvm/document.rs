//! The JSON document (docs/convert.md): machine, vCPUs and claims, which KVM does not hold, and the attributes.
//!
//! Attributes are hexadecimal strings of their value; keys are the attribute or register's number as the
//! VMM passes it (LISN, server, EQ attribute).

use std::collections::BTreeMap;

use papr_intc_protocol::layout::header::Mode;
use papr_intc_protocol::layout::{IcMode, Machine};
use papr_intc_protocol::state::State;
use papr_intc_protocol::state::model::*;
use serde_json::{Map, Value, json};

use super::attributes::{Attributes, EqConfig, Xics, Xive, XiveSourceAttributes};
use crate::convert::{ConvertError, Notes, json as shown, refused};

/// What the document says it is.
const FORMAT: &str = "papr-intc kvm attributes";
/// Its version.
const VERSION: u64 = 1;

/// A state as a document.
pub fn write(state: &State, notes: &mut Notes) -> Result<Value, ConvertError> {
    let attributes = super::export(state, notes)?;
    let (name, values) = match &attributes {
        Attributes::Xics(xics) => ("xics", write_xics(xics)),
        Attributes::Xive(xive) => ("xive", write_xive(xive)),
    };
    Ok(json!({
        "format": FORMAT,
        "version": VERSION,
        "head": shown::head(&state.head),
        "claims": shown::runs(&state.claims),
        name: values,
    }))
}

fn hex(value: impl Into<u64>) -> String {
    format!("{:#x}", value.into())
}

fn map<K: Copy + Into<u64>, V>(from: &BTreeMap<K, V>, value: impl Fn(&V) -> Value) -> Value {
    let entries = from.iter().map(|(key, v)| (hex(*key), value(v)));
    Value::Object(entries.collect::<Map<_, _>>())
}

fn write_xics(xics: &Xics) -> Value {
    json!({
        "icp_state": map(&xics.icps, |bits| hex(*bits).into()),
        "sources": map(&xics.sources, |bits| hex(*bits).into()),
    })
}

fn write_xive(xive: &Xive) -> Value {
    let source = |s: &XiveSourceAttributes| json!({ "source": hex(s.source), "config": hex(s.config), "pq": s.pq });
    let queue = |q: &EqConfig| {
        json!({ "flags": q.flags, "qshift": q.qshift, "qaddr": hex(q.qaddr),
            "qtoggle": q.qtoggle, "qindex": q.qindex })
    };
    let vp = |bytes: &[u8; 16]| {
        let digits: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        Value::from(digits)
    };
    json!({
        "sources": map(&xive.sources, source),
        "eq_config": map(&xive.queues, queue),
        "vp_state": map(&xive.vps, vp),
    })
}

/// The state in a document.
pub fn read(text: &[u8]) -> Result<State, ConvertError> {
    let value: Value = serde_json::from_slice(text).map_err(|e| refused("JSON", e.to_string()))?;
    let document = At {
        path: String::new(),
        value: &value,
    };
    if document.get("format")?.value != FORMAT || document.get("version")?.value != VERSION {
        return Err(refused(
            "format",
            format!("it is not {FORMAT:?}, version {VERSION}"),
        ));
    }
    let head = read_head(&document.get("head")?)?;
    let claims = document.get("claims")?.list()?;
    let claims: Vec<Claims> = claims.iter().map(read_run).collect::<Result<_, _>>()?;
    let fixed = fixed(&claims);
    let mut state = State::reset(head);
    (state.head.fixed, state.claims) = (fixed, claims);
    let attributes = match state.head.active {
        Mode::Xics => Attributes::Xics(read_xics(&document.get("xics")?)?),
        Mode::Xive => Attributes::Xive(read_xive(&document.get("xive")?)?),
    };
    super::import(&attributes, state)
}

/// A value in the document, and where it is.
struct At<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> At<'a> {
    fn wrong(&self, wanted: &str) -> ConvertError {
        let shown: String = self.value.to_string().chars().take(60).collect();
        refused(self.path.clone(), format!("{shown} is not {wanted}"))
    }
    fn child(&self, key: &str, value: &'a Value) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self {
            path: format!("{}{dot}{key}", self.path),
            value,
        }
    }
    fn get(&self, key: &str) -> Result<Self, ConvertError> {
        let value = self.value.get(key);
        let value = value.ok_or_else(|| self.child(key, &Value::Null).wrong("there"))?;
        Ok(self.child(key, value))
    }
    fn list(&self) -> Result<Vec<Self>, ConvertError> {
        let list = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        let child = |(n, value): (usize, &'a Value)| self.child(&n.to_string(), value);
        Ok(list.iter().enumerate().map(child).collect())
    }
    /// A number, or a string of one with `0x`.
    fn number<T: TryFrom<u64>>(&self) -> Result<T, ConvertError> {
        let number = match self.value {
            Value::String(text) => parse(text),
            value => value.as_u64(),
        };
        let number = number.and_then(|n| T::try_from(n).ok());
        number.ok_or_else(|| self.wrong("a number in range"))
    }
    fn text(&self) -> Result<&'a str, ConvertError> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }
    fn flag(&self) -> Result<bool, ConvertError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong("true or false"))
    }
    /// One of several by name.
    fn one_of<T: Copy>(
        &self,
        of: &[T],
        name: impl Fn(T) -> &'static str,
    ) -> Result<T, ConvertError> {
        let text = self.text()?;
        let found = of.iter().find(|one| name(**one) == text);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = of.iter().map(|one| name(*one)).collect();
            self.wrong(&names.join(" or "))
        })
    }
    fn map<K: TryFrom<u64> + Ord, V>(
        &self,
        value: impl Fn(&Self) -> Result<V, ConvertError>,
    ) -> Result<BTreeMap<K, V>, ConvertError> {
        let entries = self
            .value
            .as_object()
            .ok_or_else(|| self.wrong("an object"))?;
        let mut map = BTreeMap::new();
        for (key, v) in entries {
            let at = self.child(key, v);
            let key = parse(key).and_then(|key| K::try_from(key).ok());
            let key =
                key.ok_or_else(|| refused(at.path.clone(), "the key is no number in range"))?;
            if map.insert(key, value(&at)?).is_some() {
                return Err(refused(at.path, "it is there twice"));
            }
        }
        Ok(map)
    }
}

/// A number in decimal, or in hexadecimal after `0x`.
fn parse(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn read_head(at: &At<'_>) -> Result<Head, ConvertError> {
    let servers = at.get("servers")?.list()?;
    let servers: Vec<u32> = servers.iter().map(At::number).collect::<Result<_, _>>()?;
    Ok(Head {
        producer: at.get("producer")?.text()?.to_owned(),
        machine: read_machine(&at.get("machine")?)?,
        active: at
            .get("active")?
            .one_of(&[Mode::Xics, Mode::Xive], shown::mode_name)?,
        cas_xive: at.get("cas_xive")?.flag()?,
        ov5_byte_23: at.get("ov5_byte_23")?.number()?,
        servers,
        fixed: Vec::new(),
    })
}

fn read_machine(at: &At<'_>) -> Result<Machine, ConvertError> {
    let ic_modes = [IcMode::Xics, IcMode::Xive, IcMode::Dual];
    let compat = at.get("compat")?;
    Ok(Machine {
        ic_mode: at.get("ic_mode")?.one_of(&ic_modes, shown::ic_mode_name)?,
        compat: level_of(compat.text()?).ok_or_else(|| compat.wrong("a compat level"))?,
        sources: at.get("sources")?.number()?,
        xics_base: at.get("xics_base")?.number()?,
        servers: at.get("servers")?.number()?,
        phandle: at.get("phandle")?.number()?,
        esb_base: at.get("esb_base")?.number()?,
        end_base: at.get("end_base")?.number()?,
        tima_base: at.get("tima_base")?.number()?,
        hv_prio: at.get("hv_prio")?.number()?,
        store_eoi: at.get("store_eoi")?.flag()?,
        // The host's business.
        ram_shared: true,
    })
}

fn read_run(at: &At<'_>) -> Result<Claims, ConvertError> {
    let kinds = [Kind::Edge, Kind::Lsi, Kind::Msi];
    Ok(Claims {
        first: at.get("first")?.number()?,
        count: at.get("count")?.number()?,
        kind: at.get("kind")?.one_of(&kinds, shown::kind_name)?,
    })
}

fn read_xics(at: &At<'_>) -> Result<Xics, ConvertError> {
    Ok(Xics {
        icps: at.get("icp_state")?.map(At::number)?,
        sources: at.get("sources")?.map(At::number)?,
    })
}

fn read_xive(at: &At<'_>) -> Result<Xive, ConvertError> {
    let source = |at: &At<'_>| {
        Ok(XiveSourceAttributes {
            source: at.get("source")?.number()?,
            config: at.get("config")?.number()?,
            pq: at.get("pq")?.number()?,
        })
    };
    let queue = |at: &At<'_>| {
        Ok(EqConfig {
            flags: at.get("flags")?.number()?,
            qshift: at.get("qshift")?.number()?,
            qaddr: at.get("qaddr")?.number()?,
            qtoggle: at.get("qtoggle")?.number()?,
            qindex: at.get("qindex")?.number()?,
        })
    };
    Ok(Xive {
        sources: at.get("sources")?.map(source)?,
        queues: at.get("eq_config")?.map(queue)?,
        vps: at.get("vp_state")?.map(read_vp)?,
    })
}

/// 32 hexadecimal digits.
fn read_vp(at: &At<'_>) -> Result<[u8; 16], ConvertError> {
    let text = at.text()?;
    let plain = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let value = u128::from_str_radix(text, 16).ok().filter(|_| plain);
    let value = value.ok_or_else(|| at.wrong("16 bytes in hexadecimal"))?;
    Ok(value.to_be_bytes())
}
