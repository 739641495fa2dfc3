//! Private PostgreSQL and MariaDB servers for tests.
//!
//! A server runs from Debian's packages in its own directory, on its own loopback port, with every
//! durability setting enabled, and as user nobody when the tests run as root. The server and its
//! directory are removed when the handle is dropped, and also when the test process ends for any
//! reason: a small shell waits for that. A failure to start fails the test, with the name of the
//! package.

mod replica;
mod settings;
mod slow;

use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;

pub use self::slow::SlowWay;
use crate::server::{Dialect, Options};

/// User of the servers when root runs the tests: they refuse to run as root.
const NOBODY: u32 = 65534;

/// Ports outside the kernel's ephemeral range.
const PORTS: std::ops::Range<u32> = 10_000..32_000;

/// Number of ports tried before the start fails.
const ATTEMPTS: u32 = 5;

/// Number of polls while a server starts or ends, and the pause between two.
const LOOKS: (u32, Duration) = (600, Duration::from_millis(50));

/// Shell script that removes the server when its standard input closes.
const KEEPER: &str = r#"trap '' INT TERM HUP
cat >/dev/null
if pid=$(head -n 1 "$1/pid" 2>/dev/null); then kill -KILL "$pid" 2>/dev/null; fi
rm -rf "$1""#;

/// The files of a server's certificate.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// PEM.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

/// A private test server.
#[derive(Debug)]
pub struct TestServer {
    dialect: Dialect,
    port: u16,
    child: Mutex<Option<Child>>,
    /// The cleanup shell; closing its standard input removes the server.
    keeper: Child,
    directory: TempDir,
    databases: AtomicU32,
}

impl TestServer {
    /// The server that all tests of this process share.
    pub fn shared(dialect: Dialect) -> &'static Self {
        static POSTGRES: OnceLock<TestServer> = OnceLock::new();
        static MYSQL: OnceLock<TestServer> = OnceLock::new();
        match dialect {
            Dialect::Postgres => POSTGRES.get_or_init(|| Self::start(Dialect::Postgres)),
            Dialect::MySql => MYSQL.get_or_init(|| Self::start(Dialect::MySql)),
        }
    }

    /// Starts a server for a test that stops or kills it.
    pub fn start(dialect: Dialect) -> Self {
        Self::start_with(dialect, None, &[])
    }

    /// Starts a server with TLS.
    pub fn start_with_tls(dialect: Dialect, certificate: &Certificate) -> Self {
        Self::start_with(dialect, Some(certificate), &[])
    }

    /// Starts a server with additional settings, `name=value`.
    pub fn start_with(
        dialect: Dialect,
        certificate: Option<&Certificate>,
        settings: &[&str],
    ) -> Self {
        let mut server = Self::prepare(dialect);
        server.create();
        server.settle(certificate, settings);
        server.start_on_a_free_port();
        server
    }

    /// A server without data.
    fn prepare(dialect: Dialect) -> Self {
        let directory = TempDir::new().expect("a directory for a database server");
        let keeper = Command::new("/bin/sh")
            .args(["-c", KEEPER, "keeper"])
            .arg(directory.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("/bin/sh runs");
        own(directory.path());
        Self {
            dialect,
            port: 0,
            child: Mutex::new(None),
            keeper,
            directory,
            databases: AtomicU32::new(0),
        }
    }

    fn start_on_a_free_port(&mut self) {
        for _ in 0..ATTEMPTS {
            self.port = free_port();
            if self.spawn() {
                return;
            }
        }
        panic!("{:?} does not start: {}", self.dialect, self.log());
    }

    /// SQL dialect of the server.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates an empty database.
    pub fn database(&self) -> Options {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql(&format!("CREATE DATABASE {name}"));
        self.options(&name)
    }

    /// Connection options for a database.
    pub fn options(&self, database: &str) -> Options {
        Options::new(self.dialect, self.connection_string("127.0.0.1", database))
    }

    /// Connection string for a database, with the given host name.
    pub fn connection_string(&self, host: &str, database: &str) -> String {
        let port = self.port;
        match self.dialect {
            Dialect::Postgres => format!("postgres://tester:secret@{host}:{port}/{database}"),
            Dialect::MySql => format!("tester:secret@tcp({host}:{port})/{database}"),
        }
    }

    /// Runs statements as the administrator, with the server's own client.
    pub fn sql(&self, sql: &str) -> String {
        self.sql_in("", sql)
    }

    /// Runs statements in a database.
    pub fn sql_in(&self, database: &str, sql: &str) -> String {
        let port = self.port.to_string();
        let mut command = match self.dialect {
            Dialect::Postgres => {
                let mut command = Command::new(program(self.dialect, "psql"));
                let database = if database.is_empty() { "postgres" } else { database };
                command
                    .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
                    .args(["-p", &port, "-U", "tester", "-d", database, "-c", sql])
                    .env("PGPASSWORD", "secret");
                command
            }
            Dialect::MySql => {
                let mut command = Command::new(program(self.dialect, "mariadb"));
                command
                    .args(["--no-defaults", "-h", "127.0.0.1", "-P", &port, "-u", "tester"])
                    .args(["--skip-ssl", "-N", "-B", "-e", sql])
                    .env("MYSQL_PWD", "secret");
                if !database.is_empty() {
                    command.arg(database);
                }
                command
            }
        };
        let output = command.output().expect("the client of the database runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{sql}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Shuts the server down as its operator would; open connections are closed.
    pub fn stop(&self) {
        self.end(if self.dialect == Dialect::Postgres { "INT" } else { "TERM" });
    }

    /// Kills the server, as a power failure would.
    pub fn kill(&self) {
        self.end(if self.dialect == Dialect::Postgres { "QUIT" } else { "KILL" });
    }

    /// Stops the server's processes (SIGSTOP), as on a hung machine. Returns once none of them is
    /// running.
    pub fn pause(&self) {
        // The parent process first, as it starts the others.
        self.pid().into_iter().for_each(stop);
        self.children().into_iter().for_each(stop);
    }

    /// Resumes the server after a pause.
    pub fn resume(&self) {
        for pid in self.children().into_iter().chain(self.pid()) {
            send("CONT", pid);
        }
    }

    /// Restarts the server on the same port.
    pub fn restart(&self) {
        assert!(self.spawn(), "{:?} does not start again: {}", self.dialect, self.log());
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, signal: &str) {
        let Some(mut child) = self.child().take() else { return };
        send(signal, child.id());
        wait(&mut child).expect("a database server that was told to end ends");
    }

    fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// PostgreSQL's process for each connection.
    fn children(&self) -> Vec<u32> {
        let Some(pid) = self.pid() else { return Vec::new() };
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Creates the data directory.
    fn create(&self) {
        let place = self.directory.path();
        let mut command = match self.dialect {
            Dialect::Postgres => {
                let mut command = unprivileged(&program(self.dialect, "initdb"));
                let password = place.join("password");
                fs::write(&password, "secret").expect("the password's file can be written");
                own(&password);
                command
                    .args(["--no-sync", "--auth=scram-sha-256", "--username=tester"])
                    .args(["--encoding=UTF8", "--locale=C", "--pwfile"])
                    .arg(password)
                    .arg("-D")
                    .arg(self.data());
                command
            }
            Dialect::MySql => {
                let mut command = unprivileged(&program(self.dialect, "mariadb-install-db"));
                command
                    .args(["--no-defaults", "--skip-test-db"])
                    .arg("--auth-root-authentication-method=normal")
                    .arg(format!("--datadir={}", self.data().display()))
                    .arg(format!("--tmpdir={}", place.display()));
                command
            }
        };
        let output = command.current_dir(place).output();
        let output = output.expect("the program that makes a database runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Writes the settings.
    fn settle(&self, certificate: Option<&Certificate>, settings: &[&str]) {
        let place = self.directory.path();
        let text = match self.dialect {
            Dialect::Postgres => settings::postgres(place, certificate, settings),
            Dialect::MySql => settings::mysql(place, certificate, settings),
        };
        let path = place.join("settings");
        fs::write(&path, text).expect("the settings can be written");
        own(&path);
        if self.dialect == Dialect::MySql {
            let path = place.join("init.sql");
            let sql = "CREATE USER IF NOT EXISTS tester@'%' IDENTIFIED BY 'secret';\n\
                       GRANT ALL ON *.* TO tester@'%' WITH GRANT OPTION;\n";
            fs::write(&path, sql).expect("the users can be written");
            own(&path);
        }
    }

    /// Starts the server and waits until it responds; false when its port is in use.
    fn spawn(&self) -> bool {
        let place = self.directory.path();
        let log = File::options().create(true).append(true).open(place.join("log"));
        let log = log.expect("the server's log can be written");
        let mut command = match self.dialect {
            Dialect::Postgres => {
                let mut command = unprivileged(&program(self.dialect, "postgres"));
                command.arg("-D").arg(self.data());
                command.arg("-c").arg(format!("config_file={}", place.join("settings").display()));
                command.args(["-c", &format!("port={}", self.port)]);
                command
            }
            Dialect::MySql => {
                let mut command = unprivileged(&program(self.dialect, "mariadbd"));
                command.arg(format!("--defaults-file={}", place.join("settings").display()));
                command.arg(format!("--port={}", self.port));
                command
            }
        };
        let mut child = command
            .current_dir(place)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("the database server runs");
        fs::write(place.join("pid"), child.id().to_string()).expect("its number can be written");
        for _ in 0..LOOKS.0 {
            if child.try_wait().expect("a child can be looked at").is_some() {
                return false;
            }
            if self.answers() {
                *self.child() = Some(child);
                return true;
            }
            pause();
        }
        send("KILL", child.id());
        panic!("{:?} does not answer: {}", self.dialect, self.log());
    }

    fn answers(&self) -> bool {
        let port = self.port.to_string();
        let mut command = match self.dialect {
            Dialect::Postgres => {
                let mut command = Command::new(program(self.dialect, "pg_isready"));
                command.args(["-q", "-h", "127.0.0.1", "-p", &port]);
                command
            }
            Dialect::MySql => {
                let mut command = Command::new(program(self.dialect, "mariadb"));
                command
                    .args(["--no-defaults", "-h", "127.0.0.1", "-P", &port, "-u", "tester"])
                    .args(["--skip-ssl", "-e", "SELECT 1"])
                    .env("MYSQL_PWD", "secret");
                command
            }
        };
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.expect("the client of the database runs").success()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            send("KILL", child.id());
            let _ended = child.wait();
        }
        // Closing the input lets the shell remove the server.
        drop(self.keeper.stdin.take());
        let _ended = self.keeper.wait();
    }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|of| of.uid() == 0)
}

/// Changes the owner of a file to the user of the servers.
fn own(path: &Path) {
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may give its files away");
    }
}

fn unprivileged(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    let nobody = NOBODY.to_string();
    command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups", "--"]).arg(program);
    command
}

/// Path of a program; Debian does not put PostgreSQL's into PATH.
fn program(dialect: Dialect, name: &str) -> PathBuf {
    let mut places: Vec<PathBuf> =
        std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    places.extend(["/usr/sbin".into(), "/usr/bin".into()]);
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        places.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    let found = places.iter().map(|place| place.join(name)).find(|path| path.is_file());
    let package = match dialect {
        Dialect::Postgres => "postgresql",
        Dialect::MySql => "mariadb-server",
    };
    found.unwrap_or_else(|| panic!("{name} is missing: install the package {package}"))
}

/// An unused port. Another process may take it in the meantime.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let count = PORTS.end - PORTS.start;
    let first = std::process::id().wrapping_mul(97);
    loop {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count;
        let port = u16::try_from(PORTS.start + offset).expect("the range is one of ports");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn send(signal: &str, pid: u32) {
    // The process may already be gone.
    let _gone = Command::new("/bin/kill")
        .args([&format!("-{signal}"), &pid.to_string()])
        .stderr(Stdio::null())
        .status();
}

/// Stops a process. Each thread stops when it next enters the kernel.
fn stop(pid: u32) {
    send("STOP", pid);
    let runs = |task: fs::DirEntry| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // Neither stopped nor dead.
        [") R", ") S", ") D"].iter().any(|state| stat.contains(state))
    };
    for _ in 0..LOOKS.0 {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
        if !tasks.filter_map(Result::ok).any(runs) {
            return;
        }
        pause();
    }
    panic!("process {pid} does not stop");
}

fn wait(child: &mut Child) -> io::Result<ExitStatus> {
    for _ in 0..LOOKS.0 {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        pause();
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[expect(clippy::disallowed_methods, reason = "the start of a server for tests, not a runtime")]
fn pause() {
    std::thread::sleep(LOOKS.1);
}
