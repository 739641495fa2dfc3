//! The command `top`: a live view of leader, store, changes and cells.
//!
//! [`source`] asks the servers and sends messages; [`model`] is the state made of them;
//! [`view`] draws the state, and [`keys`] changes what is displayed. [`terminal`] and [`plain`]
//! are the two outputs. Texts of servers are escaped in [`wire`], where messages become values.

mod data;
mod format;
mod keys;
mod layout;
mod lines;
mod model;
mod overview;
mod page;
mod paint;
mod plain;
mod source;
mod terminal;
mod theme;
mod view;
mod wire;

#[cfg(test)]
mod golden;

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::bail;
use tokio::sync::{mpsc, watch};

use crate::connect::Connection;
use model::Model;
use source::Sources;
use theme::Theme;

/// Messages that wait for the view.
const MESSAGES: usize = 64;

/// Shortest `--interval`.
const SHORTEST: Duration = Duration::from_millis(100);

/// Shows the view, or prints lines if the output is not a terminal.
pub(crate) async fn run(
    connection: &Connection,
    interval: Duration,
    once: bool,
    has_colour: bool,
) -> anyhow::Result<ExitCode> {
    if interval < SHORTEST {
        bail!("--interval {interval:?} is too short: at least {SHORTEST:?}");
    }
    let (sender, messages) = mpsc::channel(MESSAGES);
    let sources = Sources::new(connection, interval, sender).await?;
    let model = Model::new(wire::text(connection.policy_store_address()), (80, 24));
    if once {
        let answers = async move { sources.read().await };
        return tokio::join!(plain::once(model, messages), answers).0;
    }
    let (wanted, wanted_now) = watch::channel(None);
    let output = async {
        if std::io::stdout().is_terminal() {
            terminal::run(model, messages, wanted, theme(has_colour)).await
        } else {
            plain::follow(model, messages, interval).await
        }
    };
    tokio::select! {
        ended = output => ended,
        () = sources.follow(wanted_now) => Ok(ExitCode::SUCCESS),
    }
}

/// Characters beyond ASCII need a UTF-8 locale.
fn theme(has_colour: bool) -> Theme {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let locale = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG"));
    let is_utf8 = |name: String| {
        let name = name.to_lowercase();
        name.contains("utf-8") || name.contains("utf8")
    };
    Theme { has_colour, is_ascii: !locale.is_some_and(is_utf8) }
}
