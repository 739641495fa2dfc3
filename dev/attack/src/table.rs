//! The table of the results, in Markdown. Pure.

use super::honest::Figures;
use super::run::Judged;

/// The head of the table.
pub(crate) const HEAD: &str = "\
| door | attack | honest p50 / p99 / max, ms: before | during | after | connect max, ms \
| failed | MiB before / peak / after (bound) | files | the attacker got | verdict |
|---|---|---|---|---|---|---|---|---|---|---|
";

/// A row of the table.
pub(crate) fn row(judged: &Judged) -> String {
    let Judged { row, bounds, problems } = judged;
    let [before, during, after] = &row.honest;
    let [was, most, is] = &row.usage;
    let mib = |bytes: u64| bytes >> 20;
    let verdict = if problems.is_empty() { "holds".to_owned() } else { problems.join("; ") };
    let cells = [
        row.door.clone(),
        row.attack.clone(),
        times(before),
        times(during),
        times(after),
        format!("{:.0} / {:.0} / {:.0}", before.connect, during.connect, after.connect),
        format!("{} / {} / {}", before.failures, during.failures, after.failures),
        format!(
            "{} / {} / {} ({})",
            mib(was.memory),
            mib(most.peak),
            mib(is.memory),
            mib(was.memory + bounds.memory)
        ),
        format!("{} / {} / {}", was.files, row.files, is.files),
        row.got.clone(),
        verdict,
    ];
    let cells = cells.map(|cell| cell.replace('|', "\\|").replace('\n', " "));
    format!("| {} |\n", cells.join(" | "))
}

fn times(figures: &Figures) -> String {
    let Figures { p50, p99, max, .. } = figures;
    format!("{p50:.1} / {p99:.1} / {max:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::{Bounds, Row};

    #[test]
    fn a_row_has_the_cells_of_the_head() {
        let row = Row { got: "a | b\nc".to_owned(), ..Row::default() };
        let bounds = Bounds { floor: None, memory: 1 << 20 };
        let text = super::row(&Judged { row, bounds, problems: vec!["no call".to_owned()] });
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        assert_eq!(cells(&text), cells(HEAD.lines().next().unwrap()), "{text}");
        assert!(text.ends_with("| a \\| b c | no call |\n"), "{text}");
    }
}
