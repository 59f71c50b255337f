//! The url of a webhook: what is refused, and how its receiver is called.

use ureq::http::Uri;

/// A url that a webhook can go to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) uri: Uri,
    /// Host and port as the key of limits and in messages, so that it has one form: in lower case, and
    /// without the port that the scheme has by default. A path or a query may be nobody's business.
    pub(super) receiver: String,
}

impl Target {
    /// The error says what is wrong, without the url, which may contain a password.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
        let default = match uri.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            Some(other) => return Err(format!("its scheme is {other:?}, not http or https")),
            None => return Err("it has no scheme; it begins with http:// or https://".to_owned()),
        };
        let authority = uri.authority().ok_or("it has no host")?;
        if authority.as_str().contains('@') {
            return Err("it has a user or a password, which would be stored".to_owned());
        }
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() {
            return Err("it has no host".to_owned());
        }
        let receiver = match authority.port_u16() {
            Some(0) => return Err("its port is 0".to_owned()),
            Some(port) if port != default => format!("{host}:{port}"),
            // A port that is none, such as 99999, is there and no number.
            None if authority.as_str().len() > host.len() => {
                return Err("its port is not valid".to_owned());
            }
            _ => host,
        };
        Ok(Self { uri, receiver })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_has_one_form() {
        for (url, receiver) in [
            ("https://example.com", "example.com"),
            ("https://Example.COM:443/hooks?key=1", "example.com"),
            ("HTTP://example.com:80/", "example.com"),
            ("http://example.com:443/", "example.com:443"),
            ("https://127.0.0.1:8080/x", "127.0.0.1:8080"),
            ("https://[2001:DB8::1]/x", "[2001:db8::1]"),
            ("https://[::1]:8443/x#part", "[::1]:8443"),
        ] {
            assert_eq!(Target::parse(url).unwrap().receiver, receiver, "{url}");
        }
    }

    #[test]
    fn other_urls_are_refused() {
        for (url, why) in [
            ("", "empty string"),
            (
                "example.com",
                "it has no scheme; it begins with http:// or https://",
            ),
            (
                "/hooks",
                "it has no scheme; it begins with http:// or https://",
            ),
            (
                "ftp://example.com/",
                "its scheme is \"ftp\", not http or https",
            ),
            (
                "file://example.com/etc",
                "its scheme is \"file\", not http or https",
            ),
            (
                "https://ada:secret@example.com/",
                "it has a user or a password, which would be stored",
            ),
            ("https://example.com:0/", "its port is 0"),
            ("https://example.com:99999/", "its port is not valid"),
            ("https://example.com:/", "its port is not valid"),
        ] {
            assert_eq!(Target::parse(url).unwrap_err(), why, "{url}");
        }
        for url in [
            "https://",
            "https:///x",
            "https://a b/",
            "https://example.com/a b",
            "https://ü.de",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}
