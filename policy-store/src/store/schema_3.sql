-- The reference to security_groups and the check of the lifecycle took a third of the
-- time that a large set's bindings take. Groups and their bindings are written in one
-- transaction, and reading refuses another lifecycle.
CREATE TABLE bindings (
    group_id   INTEGER NOT NULL,
    lifecycle  TEXT NOT NULL,
    space_guid TEXT NOT NULL,
    PRIMARY KEY (group_id, lifecycle, space_guid)
) STRICT, WITHOUT ROWID;
INSERT INTO bindings SELECT group_id, lifecycle, space_guid FROM security_group_spaces
    ORDER BY group_id, lifecycle, space_guid;
DROP TABLE security_group_spaces;
ALTER TABLE bindings RENAME TO security_group_spaces;
