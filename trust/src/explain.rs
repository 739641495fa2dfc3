//! Readable sentences for errors that rustls prints as names of its own types.

use std::error::Error as StdError;
use std::io;

use rustls::{CertificateError, Error};
use webpki::Error as Webpki;

/// A sentence that says what to change; `None` when the text of `error` is already clear.
#[must_use]
pub fn explain(error: &Error) -> Option<String> {
    let Error::InvalidCertificate(certificate) = error else { return None };
    let sentence = match certificate {
        CertificateError::Other(other) => other.0.downcast_ref().map(of_webpki)?,
        CertificateError::NotValidForNameContext { expected, presented }
            if presented.is_empty() =>
        {
            let name = expected.to_str();
            format!(
                "the certificate has no subject alternative name, and its common name does not \
                 count; issue it with the subject alternative name {name}"
            )
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            "the certificate or one of its issuers is signed with an algorithm that is not \
             accepted, such as SHA-1 or RSA below 2048 bits; issue it with SHA-256"
                .to_owned()
        }
        CertificateError::InvalidPurpose => {
            "the key usages of the certificate do not allow this use; issue it with \
             digitalSignature, and with serverAuth for a server or clientAuth for a client"
                .to_owned()
        }
        _ => return None,
    };
    Some(format!("invalid peer certificate: {sentence}"))
}

/// Applies [`explain()`] to one link of an error chain.
#[must_use]
pub fn explain_cause(cause: &(dyn StdError + 'static)) -> Option<String> {
    of_rustls(cause).and_then(explain)
}

/// Finds the rustls error, which may be wrapped several times.
fn of_rustls<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let inner = || of_rustls(cause.downcast_ref::<io::Error>()?.get_ref()?);
    cause.downcast_ref().or_else(inner)
}

/// `text` is the text of `error` with its causes; replaces each cause that has an explanation.
#[must_use]
pub fn explain_all(error: &(dyn StdError + 'static), mut text: String) -> String {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(sentence) = explain_cause(cause) {
            text = text.replace(&cause.to_string(), &sentence);
        }
        next = cause.source();
    }
    text
}

/// An error and its causes, `outer: inner: innermost`, with explanations. A text that already ends
/// with its cause, as those of database drivers do, is not followed by the cause.
#[must_use]
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    explain_all(error, text)
}

fn of_webpki(error: &Webpki) -> String {
    match error {
        Webpki::CaUsedAsEndEntity => {
            "the certificate is marked as an authority (basic constraints CA:TRUE) and is not \
             itself in the file of trusted authorities; issue it with CA:FALSE"
        }
        Webpki::UnsupportedCertVersion => {
            "the certificate or one of its issuers is X.509 version 1, which has neither key \
             usages nor alternative names; issue it as version 3, with a subject alternative name"
        }
        Webpki::EndEntityUsedAsCa => {
            "a certificate that is not an authority (no basic constraints CA:TRUE) has issued \
             it; issue it with the authority, or make its issuer one"
        }
        Webpki::UnsupportedCriticalExtension => {
            "the certificate or one of its issuers has a critical extension that is not known; \
             issue it without"
        }
        Webpki::NameConstraintViolation => {
            "one of its issuers may not issue certificates for its names (name constraints)"
        }
        Webpki::PathLenConstraintViolated => {
            "there are more intermediate authorities than one of them allows (path length)"
        }
        other => return format!("the certificate is refused: {other:?}"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::OtherError;

    use super::*;

    fn other(error: Webpki) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }

    #[test]
    fn names_of_types_become_sentences() {
        for (error, part) in [
            (Webpki::CaUsedAsEndEntity, "CA:FALSE"),
            (Webpki::UnsupportedCertVersion, "version 3"),
            (Webpki::EndEntityUsedAsCa, "issuer"),
            (Webpki::PathLenConstraintViolated, "path length"),
            (Webpki::MaximumPathDepthExceeded, "MaximumPathDepthExceeded"),
        ] {
            let error = other(error);
            let text = explain(&error).expect("a sentence");
            assert!(
                text.starts_with("invalid peer certificate: ") && text.contains(part),
                "{text}"
            );
            assert!(!text.contains("Other("), "{text}");
            let wrapped = io::Error::new(io::ErrorKind::InvalidData, error);
            let more = format!("connecting: {wrapped}");
            assert_eq!(explain_all(&wrapped, more), format!("connecting: {text}"));
            assert_eq!(explain_cause(&wrapped).as_ref(), Some(&text));
            assert_eq!(explain_cause(&io::Error::other(wrapped)), Some(text));
        }
    }

    #[test]
    fn other_errors_speak_for_themselves() {
        assert_eq!(explain(&Error::InvalidCertificate(CertificateError::UnknownIssuer)), None);
        assert_eq!(explain_cause(&io::Error::other("disk")), None);
    }
}
