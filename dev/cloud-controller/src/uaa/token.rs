//! Signed tokens: RS256.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, Jwk};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData};

use crate::json::{Json, object};

/// Why there is no signing key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key cannot be generated.
    #[error("making an RSA key")]
    Generate(#[source] rcgen::Error),
    /// The saved key is unusable.
    #[error("reading the signing key")]
    Read(#[source] rcgen::Error),
    /// The JWT library rejects the key.
    #[error("using the signing key for tokens")]
    Use(#[source] jsonwebtoken::errors::Error),
    /// The key is not an RSA key.
    #[error("the signing key is not an RSA key")]
    Kind,
}

/// Signs and verifies tokens.
pub struct Signer {
    private: EncodingKey,
    public: DecodingKey,
    pem: String,
    public_pem: String,
    modulus: String,
    exponent: String,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("key_id", &KEY_ID).finish_non_exhaustive()
    }
}

const KEY_ID: &str = "portcullis-dev";

impl Signer {
    /// Generates a new key.
    pub fn generate() -> Result<Self, Error> {
        let key = KeyPair::generate_for(&PKCS_RSA_SHA256).map_err(Error::Generate)?;
        Self::new(&key)
    }

    /// Uses a saved key.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let key = KeyPair::from_pem_and_sign_algo(pem, &PKCS_RSA_SHA256).map_err(Error::Read)?;
        Self::new(&key)
    }

    fn new(key: &KeyPair) -> Result<Self, Error> {
        let pem = key.serialize_pem();
        let private = EncodingKey::from_rsa_pem(pem.as_bytes()).map_err(Error::Use)?;
        let jwk = Jwk::from_encoding_key(&private, Algorithm::RS256).map_err(Error::Use)?;
        let AlgorithmParameters::RSA(parameters) = &jwk.algorithm else {
            return Err(Error::Kind);
        };
        let public = DecodingKey::from_jwk(&jwk).map_err(Error::Use)?;
        Ok(Self {
            private,
            public,
            pem,
            public_pem: public_pem(key),
            modulus: parameters.n.clone(),
            exponent: parameters.e.clone(),
        })
    }

    /// The private key, for saving.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs claims.
    pub fn sign(&self, claims: &Json) -> Result<String, jsonwebtoken::errors::Error> {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(KEY_ID.to_owned());
        jsonwebtoken::encode(&header, claims, &self.private)
    }

    /// The claims of a token that this signer issued and that is not expired at `now`,
    /// in seconds since 1970.
    pub fn read(&self, token: &str, now: i64) -> Option<Json> {
        let mut validation = Validation::new(Algorithm::RS256);
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let claims = jsonwebtoken::decode::<Json>(token, &self.public, &validation).ok()?.claims;
        let until = claims.at(&["exp"]).and_then(Json::as_integer)?;
        (now < until).then_some(claims)
    }

    /// The public key, as `/token_key` shows it.
    pub fn to_json(&self) -> Json {
        object! {
            "kty": "RSA",
            "e": &self.exponent,
            "use": "sig",
            "kid": KEY_ID,
            "alg": "RS256",
            "value": &self.public_pem,
            "n": &self.modulus,
        }
    }
}

fn public_pem(key: &KeyPair) -> String {
    let mut pem = String::from("-----BEGIN PUBLIC KEY-----\n");
    let text = base64::engine::general_purpose::STANDARD.encode(key.subject_public_key_info());
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END PUBLIC KEY-----");
    pem
}

/// The claims of a token without verification. For logs and tests.
pub fn unverified_claims(token: &str) -> Option<Json> {
    let payload = token.split('.').nth(1)?;
    Json::parse(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_own_tokens_until_they_expire() {
        let signer = Signer::generate().unwrap();
        let token = signer.sign(&object! { "exp": 100i64, "scope": "x" }).unwrap();
        assert_eq!(unverified_claims(&token), signer.read(&token, 99));
        assert_eq!(signer.read(&token, 100), None);
        let same = Signer::from_pem(signer.pem()).unwrap();
        assert!(same.read(&token, 99).is_some());
        let other = Signer::generate().unwrap();
        assert_eq!(other.read(&token, 99), None);
        let (head, _) = token.rsplit_once('.').unwrap();
        assert_eq!(signer.read(&format!("{head}.AAAA"), 99), None);
    }
}
