//! Settings files of the test servers.

use std::{fs, path::Path};

use super::{Certificate, own};

/// Settings of a PostgreSQL server with its data in `place`; `more` are additional lines.
pub(super) fn postgres(place: &Path, certificate: Option<&Certificate>, more: &[&str]) -> String {
    let data = place.join("data");
    let mut text = format!(
        "data_directory = '{data}'\nhba_file = '{data}/pg_hba.conf'\n\
         ident_file = '{data}/pg_ident.conf'\n\
         listen_addresses = '127.0.0.1'\nunix_socket_directories = '{place}'\n\
         fsync = on\nsynchronous_commit = on\nfull_page_writes = on\nmax_connections = 200\n\
         shared_buffers = 32MB\ndynamic_shared_memory_type = posix\n\
         deadlock_timeout = 100ms\nlog_min_messages = warning\n",
        data = data.display(),
        place = place.display(),
    );
    if let Some(files) = certificate {
        let (certificate, key) = owned(place, files);
        text += &format!("ssl = on\nssl_cert_file = '{certificate}'\nssl_key_file = '{key}'\n");
    }
    more.iter().for_each(|setting| text += &format!("{setting}\n"));
    text
}

/// Settings of a MariaDB server with its data in `place`; `more` are additional lines.
pub(super) fn mysql(place: &Path, certificate: Option<&Certificate>, more: &[&str]) -> String {
    // At startup a server deletes temporary files that look like its own, so servers must not share
    // a temporary directory.
    let mut text = format!(
        "[mariadbd]\ndatadir = {place}/data\ntmpdir = {place}\n\
         socket = {place}/socket\npid-file = {place}/data/pid\n\
         init-file = {place}/init.sql\nbind-address = 127.0.0.1\nskip-name-resolve\n\
         character-set-server = utf8mb4\ninnodb_flush_log_at_trx_commit = 1\ninnodb_buffer_pool_size = 32M\n\
         innodb_log_file_size = 16M\nmax_connections = 200\nperformance_schema = off\n",
        place = place.display(),
    );
    if let Some(files) = certificate {
        let (certificate, key) = owned(place, files);
        text += &format!("ssl_cert = {certificate}\nssl_key = {key}\n");
    }
    more.iter().for_each(|setting| text += &format!("{setting}\n"));
    text
}

/// Copies that only the server may read.
fn owned(place: &Path, files: &Certificate) -> (String, String) {
    let copy = |from: &Path, name: &str| {
        let to = place.join(name);
        fs::copy(from, &to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&to, mode).expect("a copy of ours can be protected");
        own(&to);
        to.display().to_string()
    };
    (copy(&files.certificate, "server.crt"), copy(&files.key, "server.key"))
}
