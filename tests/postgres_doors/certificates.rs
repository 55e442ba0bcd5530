//! Certificates of every common kind, made by `openssl` as PostgreSQL's manual and its readers do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A directory with a CA, certificates that it has issued, and others.
pub struct Certificates {
    dir: tempfile::TempDir,
}

/// Certificates of a server, by the name of their files.
pub const ALL: [&str; 5] = ["good", "wrong-host", "self-signed", "version-1", "expired"];

impl Certificates {
    pub fn make() -> Certificates {
        let made = Certificates { dir: tempfile::tempdir().unwrap() };
        made.openssl("req -new -x509 -days 9 -nodes -out ca.crt -keyout ca.key -subj /CN=Corp-CA");
        made.openssl(
            "req -new -x509 -days 9 -nodes -out self-signed.crt -keyout self-signed.key -subj /CN=localhost",
        );
        made.issue("good", "localhost", Some("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n"));
        made.issue(
            "wrong-host",
            "elsewhere",
            Some("subjectAltName=DNS:elsewhere\nbasicConstraints=CA:FALSE\n"),
        );
        made.issue("version-1", "localhost", None);
        made.issue("client", "app", None);
        made.expired();
        for (name, version) in [("version-1", 1), ("client", 1), ("good", 3), ("self-signed", 3)] {
            let text = made.openssl(&format!("x509 -in {name}.crt -noout -text"));
            assert!(text.contains(&format!("Version: {version} (")), "{name}: {text}");
        }
        made
    }

    /// `NAME.crt`, or `NAME.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The way of the manual, with what it adds where the certificate is to be of version 3.
    fn issue(&self, name: &str, subject: &str, extensions: Option<&str>) {
        self.request(name, subject);
        let mut command = format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 9 -out {name}.crt"
        );
        if let Some(extensions) = extensions {
            fs::write(self.file("extensions"), extensions).unwrap();
            command += " -extfile extensions";
        }
        self.openssl(&command);
        if extensions.is_none()
            && !self.openssl(&format!("x509 -in {name}.crt -noout -text")).contains("Version: 1 (")
        {
            // Newer releases make version 3 of it unless they are told.
            self.openssl(&format!(
                "req -x509 -x509v1 -in {name}.csr -CA ca.crt -CAkey ca.key -days 9 -out {name}.crt"
            ));
        }
    }

    fn request(&self, name: &str, subject: &str) {
        self.openssl(&format!("req -new -nodes -out {name}.csr -keyout {name}.key -subj /CN={subject}"));
    }

    /// Only the CA's own command gives a certificate a past.
    fn expired(&self) {
        self.request("expired", "localhost");
        fs::create_dir(self.file("issued")).unwrap();
        fs::write(self.file("index"), "").unwrap();
        fs::write(self.file("serial"), "77\n").unwrap();
        let config = "[ca]\ndefault_ca=c\n[c]\ndir=.\ndatabase=index\nnew_certs_dir=issued\nserial=serial\n\
                      default_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n\
                      [e]\nsubjectAltName=DNS:localhost\n";
        fs::write(self.file("ca.conf"), config).unwrap();
        self.openssl(
            "ca -batch -config ca.conf -cert ca.crt -keyfile ca.key -in expired.csr -out expired.crt -notext \
             -startdate 20200101000000Z -enddate 20200201000000Z",
        );
    }

    fn openssl(&self, arguments: &str) -> String {
        let done =
            Command::new("openssl").args(arguments.split_whitespace()).current_dir(self.dir.path()).output();
        let done = done.expect("openssl is there: `make setup` installs it");
        assert!(done.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}

/// Puts a file into a data directory as the server's own.
pub fn put(from: &Path, data: &Path, name: &str) {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
    let owner = fs::metadata(data).unwrap();
    let to = data.join(name);
    fs::copy(from, &to).unwrap();
    chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
}
