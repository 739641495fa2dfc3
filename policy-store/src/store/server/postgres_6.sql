-- Days of the first and last known use of each permit of a group, and for which time all uses of
-- a cell are known.
CREATE TABLE portcullis_rule_uses (
    group_guid TEXT COLLATE "C" NOT NULL,
    permit     BYTEA NOT NULL,
    first_day  BIGINT NOT NULL,
    last_day   BIGINT NOT NULL,
    PRIMARY KEY (group_guid, permit)
);
CREATE TABLE portcullis_rule_use_cells (
    cell_id      TEXT COLLATE "C" PRIMARY KEY,
    first_seen   BIGINT NOT NULL,
    last_seen    BIGINT NOT NULL,
    known_since  BIGINT,
    known_until  BIGINT NOT NULL,
    missed       BIGINT NOT NULL,
    missed_until BIGINT NOT NULL
);
