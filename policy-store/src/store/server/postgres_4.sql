-- The history. An entry for each generation (action is empty) and for each decision of an
-- operator. is_recorded: portcullis_archive_groups has the changed groups.
CREATE TABLE portcullis_archive_entries (
    number                BIGINT PRIMARY KEY,
    generation            BIGINT NOT NULL,
    action                TEXT COLLATE "C" NOT NULL,
    at_ns                 BIGINT NOT NULL,
    stamp_ns              BIGINT NOT NULL,
    owner                 BYTEA,
    watermark_seconds     BIGINT,
    watermark_nanoseconds BIGINT,
    noticed_ns            BIGINT,
    read_ns               BIGINT,
    traceparent           TEXT COLLATE "C",
    decided_by            BYTEA,
    reason                BYTEA,
    added                 BIGINT NOT NULL,
    changed               BIGINT NOT NULL,
    removed               BIGINT NOT NULL,
    is_recorded           BOOLEAN NOT NULL,
    bytes                 BIGINT NOT NULL,
    UNIQUE (generation, number)
);
-- The set that is there is one to which later changes lead back.
INSERT INTO portcullis_archive_entries
    (number, generation, action, at_ns, stamp_ns, added, changed, removed, is_recorded, bytes)
    SELECT 1, generation, '', stamp_ns, stamp_ns, 0, 0, 0, FALSE, 0
    FROM portcullis_store_state WHERE generation > 0;

-- content: of the group before the change; NULL for a new group.
CREATE TABLE portcullis_archive_groups (
    generation BIGINT NOT NULL,
    group_id   BIGINT NOT NULL,
    guid       TEXT COLLATE "C" NOT NULL,
    name       BYTEA NOT NULL,
    kind       TEXT COLLATE "C" NOT NULL,
    content    BYTEA,
    PRIMARY KEY (generation, group_id),
    UNIQUE (group_id, generation)
);

-- Cells that had a generation in force within these times after the commit, by instance.
CREATE TABLE portcullis_archive_progress (
    generation    BIGINT NOT NULL,
    instance      TEXT COLLATE "C" NOT NULL,
    cells         BIGINT NOT NULL,
    within_100_ms BIGINT NOT NULL,
    within_1_s    BIGINT NOT NULL,
    within_10_s   BIGINT NOT NULL,
    within_60_s   BIGINT NOT NULL,
    within_10_min BIGINT NOT NULL,
    slowest_us    BIGINT,
    PRIMARY KEY (generation, instance)
);
