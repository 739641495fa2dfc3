-- Identifiers are binary: no collation takes two of them for one.
CREATE TABLE IF NOT EXISTS portcullis_security_groups (
    id              BIGINT PRIMARY KEY,
    guid            VARBINARY(1020) NOT NULL UNIQUE,
    name            LONGBLOB NOT NULL,
    running_default BOOLEAN NOT NULL,
    staging_default BOOLEAN NOT NULL,
    rules           LONGTEXT CHARACTER SET utf8mb4 NOT NULL,
    content_hash    VARBINARY(32) NOT NULL
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS portcullis_security_group_spaces (
    group_id   BIGINT NOT NULL,
    lifecycle  VARBINARY(7) NOT NULL,
    space_guid VARBINARY(1020) NOT NULL,
    PRIMARY KEY (group_id, lifecycle, space_guid)
) ENGINE = InnoDB;

-- One row, which every Replace locks first. The fencing token lives in the same
-- transaction as the groups.
CREATE TABLE IF NOT EXISTS portcullis_store_state (
    only_row              INTEGER PRIMARY KEY,
    generation            BIGINT NOT NULL,
    stamp_ns              BIGINT NOT NULL,
    watermark_seconds     BIGINT,
    watermark_nanoseconds BIGINT,
    fencing_token         BIGINT,
    writer                BLOB,
    synced_at_ms          BIGINT,
    last_id               BIGINT NOT NULL
) ENGINE = InnoDB;
INSERT IGNORE INTO portcullis_store_state (only_row, generation, stamp_ns, last_id) VALUES (1, 0, 0, 0);

-- The last generations without a gap. The first is where memory begins: what
-- made it is not in portcullis_group_changes.
CREATE TABLE IF NOT EXISTS portcullis_generations (
    generation BIGINT PRIMARY KEY,
    stamp_ns   BIGINT NOT NULL,
    weight     BIGINT NOT NULL
) ENGINE = InnoDB;

-- What each of them changed: groups that may be gone.
CREATE TABLE IF NOT EXISTS portcullis_group_changes (
    generation   BIGINT NOT NULL,
    group_id     BIGINT NOT NULL,
    guid         VARBINARY(1020) NOT NULL,
    reach_before LONGTEXT CHARACTER SET utf8mb4,
    PRIMARY KEY (generation, group_id)
) ENGINE = InnoDB;

CREATE TABLE IF NOT EXISTS portcullis_cell_reports (
    cell_id             VARBINARY(1020) PRIMARY KEY,
    enforced_generation BIGINT NOT NULL,
    containers          BIGINT NOT NULL,
    isolated_rules      BIGINT NOT NULL,
    reported_at_ms      BIGINT NOT NULL
) ENGINE = InnoDB;
