-- Several times as fast as what PostgreSQL does by itself. Before version 14, or where
-- the server was built without it, that stays.
DO '
BEGIN
    EXECUTE ''ALTER TABLE portcullis_security_groups ALTER COLUMN rules SET COMPRESSION lz4'';
EXCEPTION
    WHEN syntax_error OR feature_not_supported OR invalid_parameter_value THEN NULL;
END';
