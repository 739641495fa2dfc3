CREATE TABLE security_groups (
    id              INTEGER PRIMARY KEY,
    guid            TEXT NOT NULL UNIQUE,
    name            TEXT NOT NULL,
    running_default INTEGER NOT NULL,
    staging_default INTEGER NOT NULL,
    rules           TEXT NOT NULL,
    content_hash    BLOB NOT NULL
) STRICT;

CREATE TABLE security_group_spaces (
    group_id   INTEGER NOT NULL REFERENCES security_groups (id),
    lifecycle  TEXT NOT NULL CHECK (lifecycle IN ('running', 'staging')),
    space_guid TEXT NOT NULL,
    PRIMARY KEY (group_id, lifecycle, space_guid)
) STRICT, WITHOUT ROWID;

-- One row. The fencing token lives in the same transaction as the groups.
CREATE TABLE store_state (
    only_row              INTEGER PRIMARY KEY CHECK (only_row = 1),
    generation            INTEGER NOT NULL,
    watermark_seconds     INTEGER,
    watermark_nanoseconds INTEGER,
    fencing_token         INTEGER,
    writer                TEXT,
    synced_at_ms          INTEGER,
    last_id               INTEGER NOT NULL
) STRICT;

CREATE TABLE cell_reports (
    cell_id             TEXT PRIMARY KEY,
    enforced_generation INTEGER NOT NULL,
    containers          INTEGER NOT NULL,
    isolated_rules      INTEGER NOT NULL,
    reported_at_ms      INTEGER NOT NULL
) STRICT;
