//! Formats a gRPC status for people.

use std::error::Error as _;

use tonic::{Code, Status};

/// Part of tonic's error text for a response whose first byte does not start a gRPC message.
const NO_MESSAGE: &str = "received message with invalid compression flag: ";

/// Formats a status as Go does, `rpc error: code = NotFound desc = resource-not-found`, followed by
/// the causes known only to this side, such as a refused connection.
pub fn describe(status: &Status) -> String {
    let (code, message) = (go_name(status.code()), status.message());
    let mut text = format!("rpc error: code = {code} desc = ");
    if message.contains(NO_MESSAGE) {
        text.push_str("the answer is not gRPC: is this the address of another server? ");
    }
    text.push_str(message);
    let mut next = status.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) && cause_text != "transport error" {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// The name of a code in Go's package `google.golang.org/grpc/codes`, which are tonic's but for two.
fn go_name(code: Code) -> String {
    match code {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    }
}
