//! Rows of reports as comma-separated values, and back.

use cacheg::{Error, Result};
use serde_json::{Map, Number, Value};

pub(crate) type Row = Map<String, Value>;

/// Adds the keys of these rows that are not there yet.
pub(crate) fn add_keys(keys: &mut Vec<String>, rows: &[Row]) {
    for key in rows.iter().flat_map(Map::keys) {
        if !keys.contains(key) {
            keys.push(key.clone());
        }
    }
}

/// A header and the rows; what a row lacks, or what is null, is empty.
pub(crate) fn write(keys: &[String], rows: &[Row]) -> Result<Vec<u8>> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut bytes = records(std::iter::once(keys.to_vec()))?;
    bytes.extend(lines(keys, rows)?);
    Ok(bytes)
}

/// Only the rows.
pub(crate) fn lines(keys: &[String], rows: &[Row]) -> Result<Vec<u8>> {
    let cell = |row: &Row, key: &String| match row.get(key) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    records(rows.iter().map(|row| keys.iter().map(|key| cell(row, key)).collect()))
}

fn records(rows: impl Iterator<Item = Vec<String>>) -> Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row).map_err(|e| Error::data(e.to_string()))?;
    }
    writer.into_inner().map_err(|e| Error::data(e.to_string()))
}

/// Keys and rows. Cells that read as numbers are numbers, empty ones are left out.
pub(crate) fn read(text: &str) -> Result<(Vec<String>, Vec<Row>)> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let bad = |e: csv::Error| Error::data(format!("not a table of comma-separated values: {e}"));
    let keys: Vec<String> = reader.headers().map_err(bad)?.iter().map(str::to_owned).collect();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(bad)?;
        let cells = keys.iter().zip(&record).filter(|(_, cell)| !cell.is_empty());
        rows.push(cells.map(|(key, cell)| (key.clone(), value(cell))).collect());
    }
    Ok((keys, rows))
}

fn value(cell: &str) -> Value {
    if let Ok(integer) = cell.parse::<i64>() {
        return integer.into();
    }
    match (cell, cell.parse::<f64>().ok().and_then(Number::from_f64)) {
        ("true", _) => true.into(),
        ("false", _) => false.into(),
        (_, Some(number)) => Value::Number(number),
        _ => cell.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_is_read() {
        let rows = [
            json!({"codec": "a|b(x=1,2)", "kl": 0.1 + 0.2, "level": 3, "ok": true}),
            json!({"codec": "say \"q\"", "kl": 1e-300, "more": "line\nbreak"}),
        ];
        let rows: Vec<Row> = rows.iter().map(|row| row.as_object().unwrap().clone()).collect();
        let mut keys = vec!["codec".to_owned()];
        add_keys(&mut keys, &rows);
        assert_eq!(keys, ["codec", "kl", "level", "ok", "more"]);
        let bytes = write(&keys, &rows).unwrap();
        let text = std::str::from_utf8(&bytes).unwrap();
        assert!(
            text.starts_with("codec,kl,level,ok,more\n\"a|b(x=1,2)\",0.30000000000000004,3,true,\n"),
            "{text}"
        );
        assert_eq!(read(text).unwrap(), (keys, rows));
        assert!(read("a,b\n1\n").unwrap_err().to_string().contains("line: 2"));
        assert_eq!(write(&[], &[]).unwrap(), b"");
    }
}
