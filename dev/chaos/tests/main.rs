//! The checker accepts valid histories, and finds planted violations of every law.

mod model;
mod planted;
