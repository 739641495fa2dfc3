//! The view in a terminal.
//!
//! Invariant: the terminal is as before when this program ends or is suspended: at the end
//! and after an error ([`Screen`] is dropped), at a panic (hook), at SIGTERM, SIGINT and
//! SIGHUP, and at Ctrl-Z or SIGTSTP. Only SIGKILL leaves the terminal as it is (`reset`).

use std::{
    io::{self, Stdout, stdout},
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context as _;
use crossterm::{
    cursor::{Hide, Show},
    event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
    execute,
    terminal::{
        self, Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
        enable_raw_mode,
    },
};
use futures_util::StreamExt as _;
use nix::{
    sys::signal::{Signal, kill, raise},
    unistd::{Pid, getppid, getsid},
};
use ratatui_core::{
    layout::Rect,
    terminal::{Terminal, TerminalOptions, Viewport},
};
use ratatui_crossterm::CrosstermBackend;
use tokio::{
    signal::unix::{self, SignalKind, signal},
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    keys::{self, Key, Next},
    model::{Message, Model},
    theme::Theme,
    view,
};

/// Reports are displayed at most this often; keys at once.
const FRAME: Duration = Duration::from_millis(100);

/// Frames after which ages are drawn again without a report.
const FRAMES_OF_AGES: u32 = 5;

const GONE: &str = "the terminal is gone";

/// Whether the terminal is in the state of the view.
static IS_ACTIVE: AtomicBool = AtomicBool::new(false);

type Area = Terminal<CrosstermBackend<Stdout>>;

/// The terminal, in raw mode and on its alternate screen.
///
/// The area is fixed, and made anew with another size: by itself the terminal would ask for
/// the cursor's position at each change, and wait for the answer among the keys.
struct Screen {
    terminal: Area,
    size: (u16, u16),
}

impl Screen {
    fn new() -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            before(info);
        }));
        let made = enter().and_then(|()| blank());
        let (terminal, size) = made.inspect_err(|_| restore())?;
        Ok(Self { terminal, size })
    }

    fn draw(&mut self, model: &mut Model, now: Duration, theme: Theme) -> io::Result<()> {
        if terminal::size()? != self.size {
            (self.terminal, self.size) = blank()?;
        }
        model.size = self.size;
        self.terminal.draw(|frame| view::draw(model, now, theme, frame.buffer_mut()))?;
        Ok(())
    }

    /// Suspends the program, with its process group if the user pressed Ctrl-Z, and returns
    /// when it continues. Without a shell in the session no one could continue the program.
    fn suspend(&mut self, stop: impl FnOnce() -> nix::Result<()>) -> io::Result<()> {
        let is_under_shell = getsid(Some(getppid())).is_ok_and(|of| Ok(of) == getsid(None));
        if !is_under_shell {
            return Ok(());
        }
        restore();
        stop()?;
        self.resume()
    }

    /// Takes the terminal again after a stop.
    fn resume(&mut self) -> io::Result<()> {
        // The shell may have changed the modes.
        restore();
        enter()?;
        (self.terminal, self.size) = blank()?;
        Ok(())
    }
}

/// Clears the screen.
fn blank() -> io::Result<(Area, (u16, u16))> {
    execute!(stdout(), Clear(ClearType::All))?;
    let size = terminal::size()?;
    let viewport = Viewport::Fixed(Rect::new(0, 0, size.0, size.1));
    let backend = CrosstermBackend::new(stdout());
    Ok((Terminal::with_options(backend, TerminalOptions { viewport })?, size))
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

fn enter() -> io::Result<()> {
    IS_ACTIVE.store(true, Ordering::SeqCst);
    enable_raw_mode()?;
    execute!(stdout(), EnterAlternateScreen, Hide)
}

/// Also with a lost terminal, whose errors say nothing new.
fn restore() {
    if IS_ACTIVE.swap(false, Ordering::SeqCst) {
        let _gone = execute!(stdout(), Show, LeaveAlternateScreen);
        let _gone = disable_raw_mode();
    }
}

/// Signals of the process.
struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: unix::Signal,
    stop: unix::Signal,
    proceed: unix::Signal,
}

/// What happened.
enum Happened {
    Event(io::Result<Event>),
    Message(Message),
    Frame,
    End(Signal),
    Stop,
    Proceed,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let raw = |of: Signal| signal(SignalKind::from_raw(of as i32));
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            stop: raw(Signal::SIGTSTP)?,
            proceed: raw(Signal::SIGCONT)?,
        })
    }

    async fn next(&mut self) -> Happened {
        tokio::select! {
            _ = self.terminate.recv() => Happened::End(Signal::SIGTERM),
            _ = self.interrupt.recv() => Happened::End(Signal::SIGINT),
            _ = self.hangup.recv() => Happened::End(Signal::SIGHUP),
            _ = self.stop.recv() => Happened::Stop,
            _ = self.proceed.recv() => Happened::Proceed,
        }
    }
}

/// What follows.
enum After {
    Draw,
    Wait,
    Exit(ExitCode),
}

/// Shows the view until the user quits, a signal arrives or the terminal is gone.
pub(crate) async fn run(
    mut model: Model,
    mut messages: mpsc::Receiver<Message>,
    wanted: watch::Sender<Option<String>>,
    theme: Theme,
) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let mut signals = Signals::listen().context("cannot listen for signals")?;
    let mut screen = Screen::new().context("cannot use the terminal")?;
    let mut events = EventStream::new();
    let mut frames = interval(FRAME);
    frames.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut is_stale, mut frame) = (true, 0_u32);
    loop {
        let happened = tokio::select! {
            event = events.next() => {
                Happened::Event(event.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())))
            }
            signal = signals.next() => signal,
            Some(message) = messages.recv() => Happened::Message(message),
            _ = frames.tick() => Happened::Frame,
        };
        let now = start.elapsed();
        let after = match happened {
            Happened::Message(message) => {
                model.update(message, now);
                is_stale = true;
                After::Wait
            }
            Happened::Frame => {
                frame = frame.wrapping_add(1);
                let is_due = is_stale || frame.is_multiple_of(FRAMES_OF_AGES);
                if is_due { After::Draw } else { After::Wait }
            }
            Happened::Event(event) => {
                let after = typed(&event.context(GONE)?, &mut model, &mut screen, now)?;
                wanted.send_replace(model.wanted_containers().map(str::to_owned));
                after
            }
            other => signalled(&other, &mut screen)?,
        };
        match after {
            After::Draw => {
                screen.draw(&mut model, now, theme).context(GONE)?;
                is_stale = false;
            }
            After::Wait => {}
            After::Exit(code) => return Ok(code),
        }
    }
}

/// Applies an event of the terminal.
fn typed(
    event: &Event,
    model: &mut Model,
    screen: &mut Screen,
    now: Duration,
) -> anyhow::Result<After> {
    let Event::Key(event) = *event else { return Ok(After::Draw) };
    if event.kind == KeyEventKind::Release {
        return Ok(After::Wait);
    }
    if is_control(event, 'c') {
        return Ok(After::Exit(ExitCode::SUCCESS));
    }
    if is_control(event, 'z') {
        screen.suspend(|| kill(Pid::from_raw(0), Signal::SIGSTOP)).context(GONE)?;
        return Ok(After::Draw);
    }
    match key(event).map(|key| keys::press(model, key, now)) {
        Some(Next::Quit) => Ok(After::Exit(ExitCode::SUCCESS)),
        Some(Next::Continue) => Ok(After::Draw),
        None => Ok(After::Wait),
    }
}

/// Obeys a signal.
fn signalled(signal: &Happened, screen: &mut Screen) -> anyhow::Result<After> {
    match signal {
        Happened::Stop => screen.suspend(|| raise(Signal::SIGSTOP)).context(GONE)?,
        Happened::Proceed => screen.resume().context(GONE)?,
        // As a shell reports the end by a signal.
        Happened::End(signal) => return Ok(After::Exit(ExitCode::from(128 + *signal as u8))),
        Happened::Event(_) | Happened::Message(_) | Happened::Frame => {}
    }
    Ok(After::Draw)
}

fn is_control(event: KeyEvent, c: char) -> bool {
    event.modifiers == KeyModifiers::CONTROL && event.code == KeyCode::Char(c)
}

/// The keys that the view knows.
fn key(event: KeyEvent) -> Option<Key> {
    Some(match event.code {
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::Left => Key::Left,
        KeyCode::Right => Key::Right,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Tab => Key::Tab,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Char(c) => Key::Char(c),
        _ => return None,
    })
}
