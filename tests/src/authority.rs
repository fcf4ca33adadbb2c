//! A certificate authority of the test's own, and what it signs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// An authority whose files go with this value.
pub struct Authority {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// Files of a certificate, in PEM.
pub struct Signed {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// No key can be made, or a file not written.
    pub fn new() -> Result<Self> {
        let folder = TempDir::with_prefix("galen-test-")?;
        let mut params = CertificateParams::new(Vec::new())?;
        // Of a certificate whose issuer has its own name OpenSSL believes that it is its own issuer.
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        fs::write(folder.path().join("ca.pem"), certificate.pem())?;
        Ok(Self { folder, issuer: Issuer::new(params, key) })
    }

    /// The file of its own certificate.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate for a server of these names or addresses, which ends in the year 2049.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn server(&self, names: &[&str]) -> Result<Signed> {
        self.sign("server", names, ExtendedKeyUsagePurpose::ServerAuth, 2049)
    }

    /// A certificate for a server that has ended.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn ended(&self, names: &[&str]) -> Result<Signed> {
        self.sign("ended", names, ExtendedKeyUsagePurpose::ServerAuth, 2020)
    }

    /// A certificate for a client.
    ///
    /// # Errors
    /// See [`Self::new`].
    pub fn client(&self) -> Result<Signed> {
        self.sign("client", &["client"], ExtendedKeyUsagePurpose::ClientAuth, 2049)
    }

    fn sign(
        &self,
        file: &str,
        names: &[&str],
        purpose: ExtendedKeyUsagePurpose,
        until: i32,
    ) -> Result<Signed> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, file);
        params.extended_key_usages = vec![purpose];
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let at = |end: &str| self.folder.path().join(format!("{file}.{end}"));
        let signed = Signed { certificate: at("pem"), key: at("key") };
        fs::write(&signed.certificate, certificate.pem()).context("cannot write a certificate")?;
        fs::write(&signed.key, key.serialize_pem())?;
        Ok(signed)
    }
}
