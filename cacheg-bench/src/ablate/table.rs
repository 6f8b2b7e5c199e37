//! A table of comma-separated values that grows row by row and survives being killed at any time.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use cacheg::core::ResultExt;
use cacheg::output::OutputFile;
use cacheg::{Error, Result};

use crate::comma::{self, Row};

/// Columns that come first, as far as rows have them.
const FIRST: &[&str] = &["name", "codec", "level", "spec", "profile", "chunk_tokens", "task", "context"];

pub(crate) struct Table {
    path: PathBuf,
    keys: Vec<String>,
    /// Columns behind the first ones, if the table is new.
    settings: Vec<String>,
    rows: Vec<Row>,
    file: File,
}

impl Table {
    /// Opens or creates it. A line at the end that was not written whole is cut off; rows that are not `wanted`,
    /// given all of them, are taken out.
    pub(crate) fn open(
        path: &Path,
        settings: Vec<String>,
        wanted: impl Fn(&[Row], &Row) -> bool,
    ) -> Result<Self> {
        let mut text = String::new();
        let mut changed = false;
        if path.exists() {
            text = std::fs::read_to_string(path).map_err(|e| Error::io("cannot read", path, e))?;
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            changed = whole < text.len();
            text.truncate(whole);
        }
        let (keys, all) = comma::read(&text).at(|| path.display())?;
        let rows: Vec<Row> = all.iter().filter(|row| wanted(&all, row)).cloned().collect();
        changed |= rows.len() < all.len();
        if changed {
            write(path, &keys, &rows)?;
        }
        let file = lock(path)?;
        Ok(Self { path: path.to_owned(), keys, settings, rows, file })
    }

    pub(crate) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Adds rows; they are on the disk when this returns.
    pub(crate) fn append(&mut self, rows: Vec<Row>) -> Result<()> {
        let mut keys = self.keys.clone();
        let first = FIRST.iter().copied().filter(|key| rows.iter().any(|row| row.contains_key(*key)));
        if keys.is_empty() {
            keys.extend(first.map(str::to_owned).chain(self.settings.iter().cloned()));
        }
        comma::add_keys(&mut keys, &rows);
        if keys.len() > self.keys.len() {
            // A new column: everything anew.
            self.keys = keys;
            self.rows.extend(rows);
            write(&self.path, &self.keys, &self.rows)?;
            self.file = lock(&self.path)?;
            return Ok(());
        }
        let failed = |e| Error::io("cannot write", &self.path, e);
        let lines = comma::lines(&self.keys, &rows).at(|| self.path.display())?;
        self.file.write_all(&lines).and_then(|()| self.file.sync_data()).map_err(failed)?;
        self.rows.extend(rows);
        Ok(())
    }
}

/// For writing at the end, by nobody else.
fn lock(path: &Path) -> Result<File> {
    let failed = |e| Error::io("cannot write", path, e);
    let file = File::options().create(true).append(true).open(path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(failed(std::io::Error::other("another run is writing to it"))),
        Err(TryLockError::Error(e)) => Err(failed(e)),
    }
}

fn write(path: &Path, keys: &[String], rows: &[Row]) -> Result<()> {
    let mut out = OutputFile::create(path, true)?;
    let failed = |e| Error::io("cannot write", path, e);
    out.write_all(&comma::write(keys, rows)?).map_err(failed)?;
    out.commit()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(name: &str, task: &str, kl: f64) -> Row {
        let row = json!({"name": name, "task": task, "context": "c", "kl": kl});
        row.as_object().unwrap().clone()
    }

    fn all(_: &[Row], _: &Row) -> bool {
        true
    }

    #[test]
    fn a_table_that_was_cut_anywhere_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        let mut table = Table::open(&path, Vec::new(), all).unwrap();
        table.append(vec![row("a,\"b\"", "x", 0.1 + 0.2), row("a", "y", 1e-300)]).unwrap();
        table.append(vec![row("b", "x", 3.0), row("b", "y", 4.0)]).unwrap();
        assert!(Table::open(&path, Vec::new(), all).err().unwrap().to_string().contains("another run"));
        drop(table);
        let whole = std::fs::read(&path).unwrap();
        let header = whole.iter().position(|b| *b == b'\n').unwrap() + 1;
        assert_eq!(&whole[..header], b"name,task,context,kl\n");
        for len in 0..=whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            let complete = whole[..len].iter().filter(|b| **b == b'\n').count().saturating_sub(1);
            let mut table = Table::open(&path, Vec::new(), all).unwrap();
            assert_eq!(table.rows().len(), complete, "{len}");
            if let Some(first) = table.rows().first() {
                assert_eq!((&first["name"], &first["kl"]), (&json!("a,\"b\""), &json!(0.1 + 0.2)));
            }
            table.append(vec![row("c", "x", 5.0)]).unwrap();
            drop(table);
            let table = Table::open(&path, Vec::new(), all).unwrap();
            assert_eq!((table.rows().len(), &table.rows()[complete]["name"]), (complete + 1, &json!("c")));
        }
    }

    #[test]
    fn rows_are_taken_out_and_columns_added() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.csv");
        let mut table = Table::open(&path, Vec::new(), all).unwrap();
        table.append(vec![row("a", "x", 1.0), row("a", "y", 2.0), row("b", "x", 3.0)]).unwrap();
        drop(table);
        // Only where both tasks are there.
        let both =
            |rows: &[Row], row: &Row| rows.iter().filter(|other| other["name"] == row["name"]).count() == 2;
        let mut table = Table::open(&path, Vec::new(), both).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "name,task,context,kl\na,x,c,1\na,y,c,2\n".replace(",1\n", ",1.0\n").replace(",2\n", ",2.0\n")
        );
        let mut more = row("b", "x", 3.0);
        more.insert("score".into(), json!(7));
        table.append(vec![more]).unwrap();
        table.append(vec![row("b", "y", 4.0)]).unwrap();
        drop(table);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "name,task,context,kl,score\na,x,c,1.0,\na,y,c,2.0,\nb,x,c,3.0,7\nb,y,c,4.0,\n");
        std::fs::write(&path, "a,b\n1\n2,3\n").unwrap();
        assert!(Table::open(&path, Vec::new(), all).err().unwrap().to_string().contains("t.csv"));
    }
}
