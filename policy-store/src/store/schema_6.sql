-- Days of the first and last known use of each permit of a group, and for which time all uses of
-- a cell are known.
CREATE TABLE rule_uses (
    group_guid TEXT NOT NULL,
    permit     BLOB NOT NULL,
    first_day  INTEGER NOT NULL,
    last_day   INTEGER NOT NULL,
    PRIMARY KEY (group_guid, permit)
) STRICT, WITHOUT ROWID;
CREATE TABLE rule_use_cells (
    cell_id      TEXT PRIMARY KEY,
    first_seen   INTEGER NOT NULL,
    last_seen    INTEGER NOT NULL,
    known_since  INTEGER,
    known_until  INTEGER NOT NULL,
    missed       INTEGER NOT NULL,
    missed_until INTEGER NOT NULL
) STRICT;
