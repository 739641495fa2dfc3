-- What cells get instead of the newest generation, as JSON.
ALTER TABLE store_state ADD COLUMN held TEXT;
