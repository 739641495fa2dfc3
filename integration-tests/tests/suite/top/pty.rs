//! A program in a pseudo terminal, and a terminal emulator that reads its output.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    num::NonZero,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use integration_tests::wait;
use nix::{
    fcntl::OFlag,
    pty::{grantpt, posix_openpt, ptsname_r, unlockpt},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vt100::Parser;

/// A terminal of 80 columns and 24 rows with a program that is the leader of its session.
pub(super) struct Pty {
    child: Child,
    master: Option<Arc<File>>,
    device: PathBuf,
    parser: Arc<Mutex<Parser>>,
    ends: Arc<AtomicBool>,
    reader: Option<JoinHandle<()>>,
}

fn positive(size: u16) -> NonZero<u16> {
    NonZero::new(size).expect("a terminal has a size")
}

fn open_terminal(device: &Path) -> File {
    let flags = OFlag::O_NOCTTY.bits();
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device);
    opened.expect("the terminal can be opened")
}

fn set_size(device: &Path, rows: u16, columns: u16) {
    let status = Command::new("stty")
        .args(["rows", &rows.to_string(), "cols", &columns.to_string()])
        .stdin(open_terminal(device))
        .status();
    assert!(status.expect("stty can be run").success());
}

impl Pty {
    /// Starts a program.
    pub(super) fn start(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        // Close-on-exec: a terminal hangs up when no process has the master open.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let master = posix_openpt(flags).expect("a pseudo terminal can be made");
        grantpt(&master).and_then(|()| unlockpt(&master)).expect("it can be unlocked");
        let device = PathBuf::from(ptsname_r(&master).expect("it has a name"));
        let terminal = open_terminal(&device);
        set_size(&device, 24, 80);
        let slave = || Stdio::from(terminal.try_clone().expect("a descriptor can be copied"));
        let child = Command::new("setsid")
            .args(["--ctty", program])
            .args(arguments)
            .env("TERM", "xterm-256color")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied())
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .expect("setsid can be run");
        let mut pty = Self {
            child,
            master: Some(Arc::new(File::from(OwnedFd::from(master)))),
            device,
            parser: Arc::new(Mutex::new(Parser::new(positive(24), positive(80), 0))),
            ends: Arc::default(),
            reader: None,
        };
        pty.reader = Some(pty.read());
        pty
    }

    /// Feeds the emulator until the terminal or the program is gone.
    fn read(&self) -> JoinHandle<()> {
        let master = Arc::clone(self.master.as_ref().expect("it was just opened"));
        let (parser, ends) = (Arc::clone(&self.parser), Arc::clone(&self.ends));
        thread::spawn(move || {
            let mut buffer = [0; 1 << 16];
            while !ends.load(Ordering::Relaxed) {
                match (&*master).read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => {
                        let mut parser = parser.lock().expect("no panic while it is held");
                        parser.process(&buffer[..length]);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        wait::let_pass(Duration::from_millis(2));
                    }
                    // EIO: no program has the terminal open.
                    Err(_) => break,
                }
            }
        })
    }

    /// Types keys.
    pub(super) fn press(&self, keys: &str) {
        let master = self.master.as_ref().expect("the terminal is connected");
        (&**master).write_all(keys.as_bytes()).expect("keys can be typed");
    }

    /// Uses the emulator.
    pub(super) fn with<T>(&self, use_it: impl FnOnce(&vt100::Screen) -> T) -> T {
        use_it(self.parser.lock().expect("no panic while it is held").screen())
    }

    /// The text on the screen.
    pub(super) fn text(&self) -> String {
        self.with(vt100::Screen::contents)
    }

    /// Waits until the text on the screen fits.
    pub(super) fn wait(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        wait::until(what, || {
            let text = self.text();
            if fits(&text) { Ok(text) } else { Err(format!("\n{text}")) }
        })
    }

    /// Waits until the screen has this text.
    pub(super) fn wait_for(&self, text: &str) -> String {
        self.wait(&format!("{text:?} on the screen"), |screen| screen.contains(text))
    }

    /// Changes the size of the terminal, as the window of a user does.
    pub(super) fn resize(&self, rows: u16, columns: u16) {
        let mut parser = self.parser.lock().expect("no panic while it is held");
        parser.screen_mut().set_size(positive(rows), positive(columns));
        drop(parser);
        set_size(&self.device, rows, columns);
    }

    /// Closes the terminal, as a lost connection does.
    pub(super) fn hang_up(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        self.master = None;
    }

    /// Sends a signal to the only child of the program, a shell.
    pub(super) fn signal_child(&self, signal: Signal) {
        let shell = self.child.id();
        let path = format!("/proc/{shell}/task/{shell}/children");
        let children = std::fs::read_to_string(&path).expect("the shell runs");
        let id = children.trim().parse().unwrap_or_else(|_| panic!("{path}: {children:?}"));
        kill(Pid::from_raw(id), signal).expect("the child runs");
    }

    /// Waits for the end of the program, and for all of its output.
    pub(super) fn ended(&mut self) -> ExitStatus {
        let status =
            wait::until("the end of the program in the terminal", || match self.child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err(format!("\n{}", self.text())),
                Err(error) => Err(error.to_string()),
            });
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        status
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        self.ends.store(true, Ordering::Relaxed);
    }
}
