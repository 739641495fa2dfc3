-- Each binding was checked; reading refuses another lifecycle anyhow.
ALTER TABLE portcullis_security_group_spaces
    DROP CONSTRAINT IF EXISTS portcullis_security_group_spaces_lifecycle_check;
