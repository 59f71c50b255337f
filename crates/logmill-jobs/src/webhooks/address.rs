//! Which addresses webhooks may go to. Whoever chooses a url must not reach what only this machine or
//! its network can reach, so what counts is the address that a name stands for at the attempt.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// The rule by which an address is allowed or refused.
#[derive(Clone, Default)]
pub(super) enum Addresses {
    /// Those that are reached through the internet.
    #[default]
    Public,
    All,
    /// What the application says of the name and the address.
    If(Arc<Allows>),
}

type Allows = dyn Fn(&str, IpAddr) -> bool + Send + Sync;

impl Addresses {
    fn allow(&self, host: &str, address: SocketAddr) -> bool {
        match self {
            Self::Public => is_public(address.ip()),
            Self::All => true,
            Self::If(allows) => allows(host, address.ip()),
        }
    }
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "Public",
            Self::All => "All",
            Self::If(_) => "If(..)",
        })
    }
}

/// Looks up names, and leaves out addresses that are refused. The connection is made to what is left,
/// so a name cannot stand for another address in between.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) addresses: Addresses,
    pub(super) names: DefaultResolver,
}

/// All addresses of a name are refused.
#[derive(Debug, thiserror::Error)]
#[error("the address {0} is not allowed for webhooks")]
pub(super) struct Refused(IpAddr);

impl Resolver for Allowed {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = self.names.resolve(uri, config, timeout)?;
        // An address of IPv6 is in brackets in a url only.
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let mut allowed = self.empty();
        for address in found.iter() {
            if self.addresses.allow(host, *address) {
                allowed.push(*address);
            }
        }
        match (allowed.is_empty(), found.first()) {
            (true, Some(refused)) => Err(ureq::Error::Other(Box::new(Refused(refused.ip())))),
            (true, None) => Err(ureq::Error::HostNotFound),
            (false, _) => Ok(allowed),
        }
    }
}

/// Whether an address is one of the public internet: none of this machine, of a private network, of a
/// link, or reserved for something else. What webhooks go to by default.
///
/// Addresses of IPv6 that stand for one of IPv4 count as that.
///
/// ```
/// use logmill_jobs::webhooks::is_public;
///
/// assert!(is_public("1.1.1.1".parse()?));
/// assert!(!is_public("10.0.0.7".parse()?));
/// assert!(!is_public("::ffff:169.254.169.254".parse()?));
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// By the registry of special addresses of IANA.
fn is_public_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        [0 | 10 | 127, ..]                        // this network, private, loopback
            | [100, 64..=127, ..]                 // shared by the customers of a provider
            | [169, 254, ..]                      // link-local, such as metadata of clouds
            | [172, 16..=31, ..]                  // private
            | [192, 0, 0 | 2, _]                  // protocol assignments, documentation
            | [192, 88, 99, _]                    // relays of 6to4
            | [192, 168, ..]                      // private
            | [198, 18 | 19, ..]                  // benchmarks
            | [198, 51, 100, _]                   // documentation
            | [203, 0, 113, _]                    // documentation
            | [224..=255, ..] // multicast, reserved, broadcast
    )
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let last = || {
        let [high, low] = [segments[6], segments[7]].map(u16::to_be_bytes);
        Ipv4Addr::new(high[0], high[1], low[0], low[1])
    };
    match segments {
        // Mapped addresses, and those that a translator turns into IPv4.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_public_v4(last()),
        // Protocol assignments, among them Teredo, whose addresses contain others.
        [0x2001, 0..=0x1ff, ..] => false,
        // Documentation.
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        // 6to4, whose addresses contain others.
        [0x2002, ..] => false,
        // All that is given out for global use.
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for public in [
            "1.1.1.1",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "0.0.0.0",
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b:1::1.1.1.1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }
}
