//! Where tonic answers otherwise than grpc-go does, and clients or operators can
//! see it (contracts/locket.md 1.1 and 1.2).

use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use tonic::body::Body;
use tonic::{Code, Status};

/// How tonic begins the text about a message that is too long.
const TOO_LONG: &str = "Error, decoded message length too large: found ";

/// The answer to what is no gRPC request: it never reaches a service.
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
    let mut response = status.clone().into_http();
    *response.status_mut() = code;
    response
}

/// Gives refusals that tonic makes by itself the code and the text of grpc-go.
/// An answer of a service is left as it is.
pub(super) fn translate(
    response: Response<Body>,
    path: &str,
    services: &[&'static str],
) -> Response<Body> {
    // The usual answer has its status in the trailers.
    let Some(code) = response.headers().get(Status::GRPC_STATUS) else { return response };
    match Code::from_bytes(code.as_bytes()) {
        Code::Unimplemented if !response.headers().contains_key(Status::GRPC_MESSAGE) => {
            Status::unimplemented(unknown(path, services)).into_http()
        }
        Code::OutOfRange => match too_long(response.headers()) {
            Some(text) => Status::resource_exhausted(text).into_http(),
            None => response,
        },
        _ => response,
    }
}

fn unknown(path: &str, services: &[&'static str]) -> String {
    match path.strip_prefix('/').and_then(|path| path.rsplit_once('/')) {
        None => format!("malformed method name: {path:?}"),
        Some((service, method)) if services.contains(&service) => {
            format!("unknown method {method} for service {service}")
        }
        Some((service, _)) => format!("unknown service {service}"),
    }
}

/// The text about a message that is too long, if the answer is about one.
fn too_long(headers: &HeaderMap) -> Option<String> {
    let status = Status::from_header_map(headers)?;
    let (found, limit) = status.message().strip_prefix(TOO_LONG)?.split_once(" bytes")?;
    let limit: String = limit.chars().filter(char::is_ascii_digit).collect();
    Some(format!("grpc: received message larger than max ({found} vs. {limit})"))
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
        let known = ["models.Locket"];
        let table = [
            ("/models.Locket/Steal", "unknown method Steal for service models.Locket"),
            ("/models.Other/Lock", "unknown service models.Other"),
            ("/nothing", "malformed method name: \"/nothing\""),
        ];
        for (path, expected) in table {
            assert_eq!(unknown(path, &known), expected);
        }
    }
}
