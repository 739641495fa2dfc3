//! Makes error responses match grpc-go where tonic differs in a way that clients or operators can
//! observe (docs/compatibility/locket.md#errors, #wire).

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use tonic::body::Body;
use tonic::{Code, Status};

/// Prefix of tonic's error text for a message that is too long.
const TOO_LONG: &str = "Error, decoded message length too large: found ";
/// Prefix of prost's error text for a message that cannot be decoded.
const MALFORMED: &str = "failed to decode Protobuf message: ";
/// Prefix of tonic's error text for a compressed message.
const COMPRESSED: &str = "Content is compressed with `";
/// Characters that are percent-encoded in a status message on the wire.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%');

/// The response to a request that is not gRPC and never reaches a service.
pub(super) fn refuse<B>(request: &Request<B>) -> Option<Response<Body>> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.map_or(&b""[..], |value| value.as_bytes());
    if !is_grpc(content_type) {
        let shown = String::from_utf8_lossy(content_type);
        let text = format!("invalid gRPC request content-type {shown:?}");
        let status = Status::invalid_argument(text);
        return Some(with(StatusCode::UNSUPPORTED_MEDIA_TYPE, &status));
    }
    if request.method() != Method::POST {
        let text = format!("received the method {}, which should be POST", request.method());
        return Some(with(StatusCode::METHOD_NOT_ALLOWED, &Status::internal(text)));
    }
    None
}

/// `application/grpc`, alone or with a subtype or parameters, in any case.
fn is_grpc(content_type: &[u8]) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    content_type.split_at_checked(GRPC.len()).is_some_and(|(start, rest)| {
        start.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';'))
    })
}

fn with(code: StatusCode, status: &Status) -> Response<Body> {
    let mut response = escape(status.clone().into_http());
    *response.status_mut() = code;
    response
}

/// Replaces code and text of errors that tonic creates by itself with those of grpc-go. Errors from
/// a service keep their text; only the wire encoding follows grpc-go.
pub(super) fn translate(
    response: Response<Body>,
    path: &str,
    is_known: impl Fn(&str) -> bool,
) -> Response<Body> {
    // A usual response has its status in the trailers.
    let Some(code) = response.headers().get(Status::GRPC_STATUS) else { return response };
    let translated = match Code::from_bytes(code.as_bytes()) {
        Code::Unimplemented if !response.headers().contains_key(Status::GRPC_MESSAGE) => {
            Some(Status::unimplemented(unknown(path, is_known)))
        }
        Code::Unimplemented => text(&response).and_then(|text| compressed(&text)),
        Code::OutOfRange => text(&response).and_then(|text| too_long(&text)),
        Code::Internal => text(&response).and_then(|text| malformed(&text)),
        _ => None,
    };
    escape(translated.map_or(response, Status::into_http))
}

/// Encodes the status message as grpc-go does: spaces and quotes are not percent-encoded.
pub(super) fn escape(mut response: Response<Body>) -> Response<Body> {
    let written = response.headers().get(Status::GRPC_MESSAGE);
    if written.is_some_and(|written| written.as_bytes().contains(&b'%'))
        && let Some(text) = text(&response)
        && let Ok(written) = HeaderValue::from_str(&utf8_percent_encode(&text, ESCAPED).to_string())
    {
        response.headers_mut().insert(Status::GRPC_MESSAGE, written);
    }
    response
}

/// The status message of a response.
fn text(response: &Response<Body>) -> Option<String> {
    Some(Status::from_header_map(response.headers())?.message().to_owned())
}

/// The service name in a path: everything but the last part.
pub(super) fn service(path: &str) -> Option<&str> {
    Some(named(path)?.0)
}

/// Splits a path into service and method.
fn named(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.rsplit_once('/')
}

/// Error text for a path without a service or method.
pub(super) fn unknown(path: &str, is_known: impl Fn(&str) -> bool) -> String {
    match named(path) {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) if is_known(service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
    }
}

/// Error for a message that is too long.
fn too_long(text: &str) -> Option<Status> {
    let (found, limit) = text.strip_prefix(TOO_LONG)?.split_once(" bytes")?;
    let limit: String = limit.chars().filter(char::is_ascii_digit).collect();
    let text = format!("grpc: received message larger than max ({found} vs. {limit})");
    Some(Status::resource_exhausted(text))
}

/// Error for a request body that is not valid protobuf.
fn malformed(text: &str) -> Option<Status> {
    let problem = text.strip_prefix(MALFORMED)?;
    Some(Status::internal(format!("grpc: error unmarshalling request: {problem}")))
}

/// Error for a compressed message.
fn compressed(text: &str) -> Option<Status> {
    let (encoding, _) = text.strip_prefix(COMPRESSED)?.split_once('`')?;
    let text = format!("grpc: Decompressor is not installed for grpc-encoding {encoding:?}");
    Some(Status::unimplemented(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_grpc_content_type_is_known() {
        for good in ["application/grpc", "application/grpc+proto", "application/grpc;a=b"] {
            assert!(is_grpc(good.as_bytes()), "{good}");
        }
        assert!(is_grpc(b"Application/GRPC+json"));
        for bad in ["", "application/grpcx", "application/json", "application/grp"] {
            assert!(!is_grpc(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn unknown_methods_are_named_as_grpc_go_names_them() {
        let known = |service: &str| service == "models.Locket";
        let table = [
            ("/models.Locket/Steal", "unknown method Steal for service models.Locket"),
            ("/models.Other/Lock", "unknown service models.Other"),
            ("/nothing", "malformed method name: \"/nothing\""),
        ];
        for (path, expected) in table {
            assert_eq!(unknown(path, known), expected);
        }
    }

    #[test]
    fn texts_are_written_as_grpc_go_writes_them() {
        let text = "a b\t\"q\" {100%} <é>\u{7f}";
        let response = escape(Status::internal(text).into_http());
        let written = &response.headers()[Status::GRPC_MESSAGE];
        assert_eq!(written, "a b%09\"q\" {100%25} <%C3%A9>%7F");
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.message(), text);
    }

    #[test]
    fn only_errors_of_tonic_and_prost_are_translated() {
        let answer = |status: Status| {
            let response = translate(status.into_http(), "/s/m", |_| false);
            let status = Status::from_header_map(response.headers()).unwrap();
            (status.code(), status.message().to_owned())
        };
        let own = Status::internal("the service failed to decode Protobuf message: x");
        assert_eq!(answer(own.clone()), (Code::Internal, own.message().to_owned()));
        let text = "grpc: error unmarshalling request: invalid varint";
        let prost = Status::internal(format!("{MALFORMED}invalid varint"));
        assert_eq!(answer(prost), (Code::Internal, text.to_owned()));
        let text = "grpc: Decompressor is not installed for grpc-encoding \"gzip\"";
        let tonic =
            Status::unimplemented("Content is compressed with `gzip` which isn't supported");
        assert_eq!(answer(tonic), (Code::Unimplemented, text.to_owned()));
    }
}
