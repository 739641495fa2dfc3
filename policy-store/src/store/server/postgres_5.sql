-- What cells get instead of the newest generation, as JSON.
ALTER TABLE portcullis_store_state ADD COLUMN held BYTEA;
