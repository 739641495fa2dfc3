//! Contexts: addresses and certificates of one deployment, as JSON. A context is a file of its
//! own, or has a name in the list of contexts.

use std::{
    collections::BTreeMap,
    env, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use crate::{field::Field, report::Report};

/// A context. Every key is optional; unknown keys are errors.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ContextFile {
    pub(crate) lock_server: Server,
    pub(crate) policy_store: Server,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cell_socket: Option<PathBuf>,
    /// Admin URLs of the syncers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) syncer_admin: Vec<String>,
    #[serde(skip_serializing_if = "is_default")]
    pub(crate) cloud_controller: CloudController,
}

/// A server, and the client certificate for it.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    /// host:port
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<PathBuf>,
}

/// The Cloud Controller's public API.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CloudController {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
}

fn is_default(cloud_controller: &CloudController) -> bool {
    *cloud_controller == CloudController::default()
}

/// The list of contexts.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Contexts {
    /// The context without `--context`; empty for none.
    current: String,
    contexts: BTreeMap<String, ContextFile>,
}

/// The context that `--context` names: a file if the text is a path, or else a context of the
/// list. Without `--context` the current one of the list.
///
/// # Errors
/// The file cannot be read, is not JSON, or has an unknown key; no context has the name.
pub(crate) fn select(name: Option<&Path>) -> anyhow::Result<ContextFile> {
    let Some(path) = name else {
        let Some(mut list) =
            list_file().filter(|file| file.exists()).map(|_| load()).transpose()?
        else {
            return Ok(ContextFile::default());
        };
        let current = std::mem::take(&mut list.current);
        if current.is_empty() {
            return Ok(ContextFile::default());
        }
        return take(&mut list, &current);
    };
    match path.to_str().filter(|name| !name.contains('/') && !path.exists()) {
        Some(name) => take(&mut load()?, name),
        None => read(path),
    }
}

fn take(list: &mut Contexts, name: &str) -> anyhow::Result<ContextFile> {
    list.contexts.remove(name).with_context(|| {
        let known: Vec<&str> = list.contexts.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none" } else { &known.join(", ") };
        format!("there is neither a file nor a context {name:?}; contexts: {known}")
    })
}

fn read(path: &Path) -> anyhow::Result<ContextFile> {
    let name = || format!("context file {}", path.display());
    let text = fs::read_to_string(path).with_context(name)?;
    serde_json::from_str(&text).with_context(name)
}

/// `$XDG_CONFIG_HOME/portcullis/contexts.json`, or below `~/.config`.
fn list_file() -> Option<PathBuf> {
    let set = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let directory = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(directory.join("portcullis").join("contexts.json"))
}

fn load() -> anyhow::Result<Contexts> {
    let file = list_file().context("contexts: neither XDG_CONFIG_HOME nor HOME is set")?;
    let name = || format!("contexts {}", file.display());
    match fs::read_to_string(&file) {
        Ok(text) => serde_json::from_str(&text).with_context(name),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Contexts::default()),
        Err(error) => Err(error).with_context(name),
    }
}

/// Replaces the file at once, so that no reader sees a part of it.
fn save(list: &Contexts) -> anyhow::Result<()> {
    let file = list_file().context("contexts: neither XDG_CONFIG_HOME nor HOME is set")?;
    let name = || format!("contexts {}", file.display());
    let directory = file.parent().context("contexts: no directory")?;
    fs::create_dir_all(directory).with_context(name)?;
    let new = file.with_extension(format!("json.{}", std::process::id()));
    let text = serde_json::to_string_pretty(list).with_context(name)? + "\n";
    fs::write(&new, text).with_context(name)?;
    fs::rename(&new, &file).with_context(name)
}

/// A context of the list.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    name: String,
    current: bool,
    context: ContextFile,
}

pub(crate) const CONTEXTS: &[Field<Named>] = &[
    Field::text("name", |of| of.name.clone()),
    Field::boolean("current", |of| of.current),
    Field::text("lock_server", |of| of.context.lock_server.address.clone().unwrap_or_default()),
    Field::text("policy_store", |of| of.context.policy_store.address.clone().unwrap_or_default()),
    Field::text("certificate", |of| path(of.context.policy_store.cert.as_ref())),
    Field::wide(Field::text("cell_socket", |of| path(of.context.cell_socket.as_ref()))),
    Field::wide(Field::texts("syncer_admin", |of| of.context.syncer_admin.clone())),
    Field::wide(Field::text("cloud_controller", |of| {
        of.context.cloud_controller.url.clone().unwrap_or_default()
    })),
];

fn path(path: Option<&PathBuf>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

fn named(list: Contexts) -> Vec<Named> {
    let Contexts { current, contexts } = list;
    let named = |(name, context)| Named { current: current == name, name, context };
    contexts.into_iter().map(named).collect()
}

/// The names of the contexts.
pub(crate) fn names() -> anyhow::Result<Vec<String>> {
    Ok(load()?.contexts.into_keys().collect())
}

/// The list of contexts.
pub(crate) fn list() -> anyhow::Result<Report> {
    Ok(Report::list(CONTEXTS, named(load()?)))
}

/// The context of this name, or the current one.
pub(crate) fn show(name: Option<&str>) -> anyhow::Result<Report> {
    let list = load()?;
    let name = name.unwrap_or(&list.current).to_owned();
    if name.is_empty() {
        bail!("no context is in use (context use NAME)");
    }
    let found = named(list).into_iter().find(|named| named.name == name);
    let found = found.with_context(|| format!("there is no context {name:?} (context list)"))?;
    Ok(Report::record(CONTEXTS, found))
}

/// Uses this context from now on.
pub(crate) fn switch(name: &str) -> anyhow::Result<Report> {
    let mut list = load()?;
    if !list.contexts.contains_key(name) {
        bail!("there is no context {name:?} (context list)");
    }
    name.clone_into(&mut list.current);
    save(&list)?;
    show(Some(name))
}

/// Adds the context of a file to the list, or replaces it. The first context is used at once.
pub(crate) fn add(name: &str, file: &Path) -> anyhow::Result<Report> {
    if name.is_empty() || name.contains('/') {
        bail!("{name:?} cannot be the name of a context: it is empty or a path");
    }
    let context = read(file)?;
    let mut list = load()?;
    list.contexts.insert(name.to_owned(), context);
    if list.current.is_empty() {
        name.clone_into(&mut list.current);
    }
    save(&list)?;
    show(Some(name))
}
