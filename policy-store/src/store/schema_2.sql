-- When the served generation was made: the same for every reader.
ALTER TABLE store_state ADD COLUMN stamp_ns INTEGER NOT NULL DEFAULT 0;
UPDATE store_state SET stamp_ns = coalesce(synced_at_ms, 0) * 1000000;

-- The last generations without a gap. The first is where memory begins: what
-- made it is not in group_changes.
CREATE TABLE generations (
    generation INTEGER PRIMARY KEY,
    stamp_ns   INTEGER NOT NULL,
    weight     INTEGER NOT NULL
) STRICT;
INSERT INTO generations SELECT generation, stamp_ns, 0 FROM store_state WHERE generation > 0;

-- What each of them changed: groups that may be gone.
CREATE TABLE group_changes (
    generation   INTEGER NOT NULL REFERENCES generations (generation),
    group_id     INTEGER NOT NULL,
    guid         TEXT NOT NULL,
    reach_before TEXT,
    PRIMARY KEY (generation, group_id)
) STRICT, WITHOUT ROWID;
