-- The history. An entry for each generation (action is empty) and for each decision of an
-- operator. is_recorded: archive_groups has the changed groups.
CREATE TABLE archive_entries (
    number                INTEGER PRIMARY KEY,
    generation            INTEGER NOT NULL,
    action                TEXT NOT NULL,
    at_ns                 INTEGER NOT NULL,
    stamp_ns              INTEGER NOT NULL,
    owner                 BLOB,
    watermark_seconds     INTEGER,
    watermark_nanoseconds INTEGER,
    noticed_ns            INTEGER,
    read_ns               INTEGER,
    traceparent           TEXT,
    decided_by            BLOB,
    reason                BLOB,
    added                 INTEGER NOT NULL,
    changed               INTEGER NOT NULL,
    removed               INTEGER NOT NULL,
    is_recorded           INTEGER NOT NULL,
    bytes                 INTEGER NOT NULL,
    UNIQUE (generation, number)
) STRICT;
-- The set that is there is one to which later changes lead back.
INSERT INTO archive_entries
    (number, generation, action, at_ns, stamp_ns, added, changed, removed, is_recorded, bytes)
    SELECT 1, generation, '', stamp_ns, stamp_ns, 0, 0, 0, 0, 0
    FROM store_state WHERE generation > 0;

-- content: of the group before the change; NULL for a new group.
CREATE TABLE archive_groups (
    generation INTEGER NOT NULL,
    group_id   INTEGER NOT NULL,
    guid       TEXT NOT NULL,
    name       BLOB NOT NULL,
    kind       TEXT NOT NULL,
    content    BLOB,
    PRIMARY KEY (generation, group_id),
    UNIQUE (group_id, generation)
) STRICT;

-- Cells that had a generation in force within these times after the commit, by instance.
CREATE TABLE archive_progress (
    generation     INTEGER NOT NULL,
    instance       TEXT NOT NULL,
    cells          INTEGER NOT NULL,
    within_100_ms  INTEGER NOT NULL,
    within_1_s     INTEGER NOT NULL,
    within_10_s    INTEGER NOT NULL,
    within_60_s    INTEGER NOT NULL,
    within_10_min  INTEGER NOT NULL,
    slowest_us     INTEGER,
    PRIMARY KEY (generation, instance)
) STRICT, WITHOUT ROWID;
