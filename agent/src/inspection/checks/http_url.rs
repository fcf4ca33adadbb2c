//! URLs of HTTP checks.

use ::http::Uri;
use ::http::uri::Scheme;

use crate::inspection::connect::Address;

/// Where a request goes, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) address: Address,
    pub(super) is_tls: bool,
    /// The authority, as it goes into `Host`.
    pub(super) authority: Box<str>,
    /// The path and the query.
    pub(super) target: Box<str>,
}

impl Url {
    /// Reads an absolute URL of `http`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("`{}` {why}", text.escape_debug());
        let uri: Uri = text.parse().map_err(|_| wrong("is no URL"))?;
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(wrong("does not begin with `http://` or `https://`")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("has no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("has a user in it: credentials come from files"));
        }
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            None if is_tls => 443,
            None => 80,
        };
        let address =
            Address::new(authority.host(), port).map_err(|why| wrong(&format!("has no host: {why}")))?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let target = if target.is_empty() { "/" } else { target };
        Ok(Self { address, is_tls, authority: authority.as_str().into(), target: target.into() })
    }

    /// Where `location` leads from here (RFC 9110, section 10.2.2).
    pub(super) fn join(&self, location: &str) -> Result<Self, String> {
        let location = location.split('#').next().unwrap_or_default();
        let scheme = if self.is_tls { "https" } else { "http" };
        if location.contains("://") {
            return Self::parse(location);
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("{scheme}://{rest}"));
        }
        let path = self.target.split('?').next().unwrap_or("/");
        let joined = match location.chars().next() {
            Some('/') => location.to_owned(),
            Some('?') => format!("{path}{location}"),
            _ => format!("{}/{location}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
        };
        Self::parse(&format!("{scheme}://{}{joined}", self.authority))
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority, self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_url_names_is_read_and_joined() {
        let url = Url::parse("http://db.example:8080/a/b?c=d").unwrap();
        assert_eq!((url.address.port, &*url.authority, &*url.target), (8080, "db.example:8080", "/a/b?c=d"));
        assert_eq!(Url::parse("https://[::1]").unwrap().to_string(), "https://[::1]/");
        for (location, to) in [
            ("/x", "http://db.example:8080/x"),
            ("x?y", "http://db.example:8080/a/x?y"),
            ("?z", "http://db.example:8080/a/b?z"),
            ("//other/p#f", "http://other/p"),
            ("https://other", "https://other/"),
        ] {
            assert_eq!(url.join(location).unwrap().to_string(), to, "{location}");
        }
        for wrong in ["ftp://a/", "db:80", "http://", "http://u:p@h/", "http://a b/", "/x"] {
            assert!(Url::parse(wrong).is_err(), "{wrong}");
        }
    }
}
