//! Where the parts of the overview are, depending on the size of the terminal and on the
//! number of cells.

/// Smallest usable terminal.
pub(crate) const SMALLEST: (u16, u16) = (40, 10);

/// Lines above the changes, without those for problems.
pub(crate) const HEADER: u16 = 5;

/// Fewest rows of changes.
const FEWEST_CHANGES: u16 = 3;

/// Longest displayed name of a cell in a grid of names.
const LONGEST_NAME: usize = 24;

/// How cells are displayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// A row for each cell.
    Table,
    /// Symbol and name of each cell.
    Names {
        /// Columns of the terminal for each.
        width: u16,
    },
    /// Only the symbol of each cell.
    Symbols,
}

/// The rows of the overview.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overview {
    /// Rows of changes, without their title.
    pub(crate) change_rows: u16,
    /// Rows of cells, without their title.
    pub(crate) cell_rows: u16,
    /// How cells are displayed.
    pub(crate) shape: Shape,
    /// Cells in one row.
    pub(crate) columns: usize,
}

/// What the overview has to show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    /// Columns and rows of the terminal.
    pub(crate) size: (u16, u16),
    /// Lines for problems.
    pub(crate) problems: u16,
    /// Number of changes.
    pub(crate) changes: usize,
    /// Number of cells.
    pub(crate) cells: usize,
    /// Longest name of a cell, in columns.
    pub(crate) longest_name: usize,
}

impl Overview {
    /// Prefers rows with details to names, and names to symbols. All cells are visible if
    /// the terminal is large enough for their symbols.
    pub(crate) fn new(needs: Needs) -> Self {
        let Needs { size: (width, height), problems, changes, cells, longest_name } = needs;
        // Two titles and the footer.
        let rows = height.saturating_sub(HEADER + problems + 3);
        let least = FEWEST_CHANGES.max(rows / 5).min(rows / 2);
        let room = rows - least;
        let inner = width.saturating_sub(2).max(1);
        let name = u16::try_from(longest_name.min(LONGEST_NAME)).unwrap_or(inner) + 4;
        let per_row = usize::from(inner / name).max(1);
        let fits =
            |columns: usize, extra: usize| cells.div_ceil(columns) + extra <= usize::from(room);
        let (shape, columns, extra) = if width >= 78 && fits(1, 1) {
            (Shape::Table, 1, 1)
        } else if fits(per_row, 0) {
            (Shape::Names { width: name }, per_row, 0)
        } else {
            (Shape::Symbols, usize::from(inner), 0)
        };
        let needed = cells.div_ceil(columns) + extra;
        let cell_rows = u16::try_from(needed).unwrap_or(room).clamp(1, room.max(1));
        let wanted = u16::try_from(changes).unwrap_or(u16::MAX).max(FEWEST_CHANGES);
        let change_rows = wanted.min(rows.saturating_sub(cell_rows));
        Self { change_rows, cell_rows, shape, columns }
    }
}

/// First displayed row of a list, so that the selected one is visible.
pub(crate) fn offset(selected: usize, rows: usize) -> usize {
    if rows == 0 { 0 } else { (selected + 1).saturating_sub(rows) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overview(size: (u16, u16), cells: usize) -> Overview {
        Overview::new(Needs { size, problems: 0, changes: 30, cells, longest_name: 9 })
    }

    #[test]
    fn more_cells_get_less_room_each() {
        let Overview { shape, cell_rows, change_rows, .. } = overview((80, 24), 2);
        assert_eq!((shape, cell_rows, change_rows), (Shape::Table, 3, 13));
        let Overview { shape, columns, .. } = overview((80, 24), 20);
        assert_eq!((shape, columns), (Shape::Names { width: 13 }, 6));
        let large = overview((80, 24), 1_000);
        assert_eq!((large.shape, large.cell_rows), (Shape::Symbols, 13));
        assert_eq!(overview((160, 50), 20).shape, Shape::Table);
    }

    #[test]
    fn rows_never_exceed_the_terminal() {
        for height in SMALLEST.1..60 {
            for cells in [0, 1, 2, 20, 500, 1_000, 5_000] {
                let Overview { change_rows, cell_rows, .. } = overview((80, height), cells);
                assert!(HEADER + 3 + change_rows + cell_rows <= height.max(11), "{height} {cells}");
            }
        }
    }

    #[test]
    fn the_selected_row_is_visible() {
        assert_eq!(offset(0, 5), 0);
        assert_eq!(offset(4, 5), 0);
        assert_eq!(offset(5, 5), 1);
        assert_eq!(offset(3, 0), 0);
    }
}
