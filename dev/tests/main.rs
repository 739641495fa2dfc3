//! The program `portcullis-dev`.

#![expect(clippy::unwrap_used, reason = "what a test unwraps, it asserts")]

mod cloud_controller;
