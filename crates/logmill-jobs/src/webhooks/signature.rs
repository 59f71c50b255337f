//! The signature of the Standard Webhooks specification: the HMAC-SHA256 of `id.timestamp.body`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::Secret;

/// The header with the id of the message.
pub(super) const ID: &str = "webhook-id";
/// The header with the time of the attempt, in seconds since the epoch.
pub(super) const TIMESTAMP: &str = "webhook-timestamp";
/// The header with the signatures, separated by spaces.
pub(super) const SIGNATURE: &str = "webhook-signature";
/// What a signature by a shared secret begins with.
const VERSION: &str = "v1,";

fn mac(secret: &Secret, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.key()).expect("keys have any length");
    for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    mac
}

/// The value of the header: a signature by each secret.
pub(super) fn sign(secrets: &[Secret], id: &str, timestamp: &str, body: &[u8]) -> String {
    let signatures = secrets.iter().map(|secret| {
        let code = mac(secret, id, timestamp, body).finalize().into_bytes();
        format!("{VERSION}{}", STANDARD.encode(code))
    });
    signatures.collect::<Vec<_>>().join(" ")
}

/// Whether one of the signatures in the header is by one of the secrets. How long that takes does not
/// depend on how much of a signature is right.
pub(super) fn is_signed(
    secrets: &[Secret],
    id: &str,
    timestamp: &str,
    body: &[u8],
    signatures: &str,
) -> bool {
    let signatures = signatures.split(' ');
    let codes: Vec<Vec<u8>> = signatures
        .filter_map(|signature| STANDARD.decode(signature.strip_prefix(VERSION)?).ok())
        .collect();
    secrets.iter().any(|secret| {
        let mac = mac(secret, id, timestamp, body);
        // Compares in constant time.
        codes
            .iter()
            .any(|code| mac.clone().verify_slice(code).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of the specification's own libraries.
    #[test]
    fn the_published_example_has_its_signature() {
        let secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap()];
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek";
        let (timestamp, body) = ("1614265330", br#"{"test": 2432232314}"#);
        let signed = sign(&secrets, id, timestamp, body);
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(is_signed(&secrets, id, timestamp, body, &signed));
    }

    fn secret() -> impl Strategy<Value = Secret> {
        let key = prop::collection::vec(any::<u8>(), 24..=64);
        key.prop_map(|key| Secret::from_key(&key).unwrap())
    }

    proptest! {
        #[test]
        fn what_is_signed_verifies_and_a_changed_byte_does_not(
            secrets in prop::collection::vec(secret(), 1..4),
            id in "[a-z_0-9]{1,40}",
            timestamp in 0_u64..1 << 40,
            body in prop::collection::vec(any::<u8>(), 1..200),
            at in any::<prop::sample::Index>(),
            change in 1_u8..,
        ) {
            let timestamp = timestamp.to_string();
            let header = sign(&secrets, &id, &timestamp, &body);
            // Any secret of a rotation is enough.
            for secret in secrets.chunks(1) {
                prop_assert!(is_signed(secret, &id, &timestamp, &body, &header));
            }

            let changed = |bytes: &[u8]| {
                let mut bytes = bytes.to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= change;
                bytes
            };
            prop_assert!(!is_signed(&secrets, &id, &timestamp, &changed(&body), &header));
            let changed_id = String::from_utf8_lossy(&changed(id.as_bytes())).into_owned();
            prop_assert!(!is_signed(&secrets, &changed_id, &timestamp, &body, &header));
            let later = timestamp.clone() + "0";
            prop_assert!(!is_signed(&secrets, &id, &later, &body, &header));
            let other = Secret::from_key(&changed(secrets[0].key())).unwrap();
            let header = sign(&secrets[..1], &id, &timestamp, &body);
            prop_assert!(!is_signed(&[other], &id, &timestamp, &body, &header));
            let changed_header = String::from_utf8_lossy(&changed(header.as_bytes())).into_owned();
            prop_assert!(!is_signed(&secrets[..1], &id, &timestamp, &body, &changed_header));
        }
    }
}
