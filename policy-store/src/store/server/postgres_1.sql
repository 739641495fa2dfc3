CREATE TABLE portcullis_security_groups (
    id              BIGINT PRIMARY KEY,
    guid            TEXT COLLATE "C" NOT NULL UNIQUE,
    name            BYTEA NOT NULL,
    running_default BOOLEAN NOT NULL,
    staging_default BOOLEAN NOT NULL,
    rules           TEXT NOT NULL,
    content_hash    BYTEA NOT NULL
);

CREATE TABLE portcullis_security_group_spaces (
    group_id   BIGINT NOT NULL,
    lifecycle  TEXT COLLATE "C" NOT NULL CHECK (lifecycle IN ('running', 'staging')),
    space_guid TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (group_id, lifecycle, space_guid)
);

-- One row, which every Replace locks first. The fencing token lives in the same
-- transaction as the groups.
CREATE TABLE portcullis_store_state (
    only_row              INTEGER PRIMARY KEY CHECK (only_row = 1),
    generation            BIGINT NOT NULL,
    stamp_ns              BIGINT NOT NULL,
    watermark_seconds     BIGINT,
    watermark_nanoseconds BIGINT,
    fencing_token         BIGINT,
    writer                BYTEA,
    synced_at_ms          BIGINT,
    last_id               BIGINT NOT NULL
);
INSERT INTO portcullis_store_state (only_row, generation, stamp_ns, last_id) VALUES (1, 0, 0, 0);

-- The last generations without a gap. The first is where memory begins: what
-- made it is not in portcullis_group_changes.
CREATE TABLE portcullis_generations (
    generation BIGINT PRIMARY KEY,
    stamp_ns   BIGINT NOT NULL,
    weight     BIGINT NOT NULL
);

-- What each of them changed: groups that may be gone.
CREATE TABLE portcullis_group_changes (
    generation   BIGINT NOT NULL,
    group_id     BIGINT NOT NULL,
    guid         TEXT COLLATE "C" NOT NULL,
    reach_before TEXT,
    PRIMARY KEY (generation, group_id)
);

CREATE TABLE portcullis_cell_reports (
    cell_id             TEXT COLLATE "C" PRIMARY KEY,
    enforced_generation BIGINT NOT NULL,
    containers          BIGINT NOT NULL,
    isolated_rules      BIGINT NOT NULL,
    reported_at_ms      BIGINT NOT NULL
);
