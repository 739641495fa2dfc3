//! Finds containers in the inventories of all cells.
//!
//! Every search visits all containers: a foundation has some 250,000, which takes
//! milliseconds, and an index would have to be kept current with each report.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use model::{
    group::{Lifecycle, SecurityGroup},
    ids::{CellId, ContainerHandle, SpaceGuid},
};

use super::{cells::KnownCell, inventory::Container};

/// A container, and where it is.
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    /// The cell.
    pub cell: &'a CellId,
    /// Whether the cell watches this instance.
    pub connected: bool,
    /// The handle.
    pub handle: &'a ContainerHandle,
    /// The container.
    pub container: &'a Container,
}

/// The containers of these cells, ascending by cell and handle.
pub fn placed<'a>(
    cells: impl IntoIterator<Item = &'a KnownCell>,
) -> impl Iterator<Item = Placed<'a>> {
    cells.into_iter().flat_map(|cell| {
        let containers = cell.inventory().into_iter().flat_map(|known| known.containers());
        let (cell, connected) = (&cell.status.id, cell.status.connected);
        containers.map(move |(handle, container)| Placed { cell, connected, handle, container })
    })
}

/// Cells whose containers are not known.
#[must_use]
pub fn unknown<'a>(cells: impl IntoIterator<Item = &'a KnownCell>) -> Vec<&'a CellId> {
    let unknown = cells.into_iter().filter(|cell| cell.inventory().is_none());
    unknown.map(|cell| &cell.status.id).collect()
}

/// Selects containers; an absent part selects all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// On this cell.
    pub cell: Option<CellId>,
    /// Of this app.
    pub app: Option<String>,
    /// In this space.
    pub space: Option<SpaceGuid>,
    /// With a handle that begins like this.
    pub handle: String,
    /// With this address.
    pub address: Option<IpAddr>,
}

impl Filter {
    /// Whether the cell is selected.
    #[must_use]
    pub fn fits_cell(&self, cell: &KnownCell) -> bool {
        self.cell.as_ref().is_none_or(|wanted| *wanted == cell.status.id)
    }

    /// Whether the container is selected, whatever its cell.
    #[must_use]
    pub fn fits(&self, placed: &Placed<'_>) -> bool {
        let Self { cell: _, app, space, handle, address } = self;
        let container = placed.container;
        placed.handle.as_str().starts_with(handle)
            && app.as_deref().is_none_or(|app| *app == *container.app)
            && (space.is_none() || *space == container.space)
            && (address.is_none() || *address == container.address)
    }
}

/// Containers to which the same groups apply.
#[derive(Debug)]
pub struct Subject<'a> {
    /// Their space; absent when the cell knows none.
    pub space: Option<SpaceGuid>,
    /// Their lifecycle; absent when their workload has none.
    pub lifecycle: Option<Lifecycle>,
    /// The containers.
    pub containers: Vec<Placed<'a>>,
}

impl<'a> Subject<'a> {
    /// The containers of a space with this lifecycle.
    #[must_use]
    pub fn of_space(cells: &'a [KnownCell], space: SpaceGuid, lifecycle: Lifecycle) -> Self {
        let (space, lifecycle) = (Some(space), Some(lifecycle));
        let fits = |placed: &Placed<'_>| {
            placed.container.lifecycle == lifecycle && placed.container.space == space
        };
        let containers = placed(cells).filter(fits).collect();
        Self { space, lifecycle, containers }
    }

    /// The containers of an app with this lifecycle; without one, with the lifecycle that
    /// the app's containers have: running, unless all are staging. `None`: no cell
    /// reported a container of the app.
    #[must_use]
    pub fn of_app(cells: &'a [KnownCell], app: &str, lifecycle: Option<Lifecycle>) -> Option<Self> {
        let of_app = |placed: &Placed<'_>| *placed.container.app == *app;
        let mut all: Vec<_> = placed(cells).filter(of_app).collect();
        if all.is_empty() {
            return None;
        }
        let has = |wanted| all.iter().any(|placed| placed.container.lifecycle == Some(wanted));
        let found = [Lifecycle::Running, Lifecycle::Staging].into_iter().find(|kind| has(*kind));
        let lifecycle = lifecycle.or(found);
        // The inventory of a cell that is not connected may be old.
        let first = all.iter().filter(|placed| placed.connected).chain(&all);
        let space = first.filter_map(|placed| placed.container.space.clone()).next();
        if lifecycle.is_some() {
            all.retain(|placed| placed.container.lifecycle == lifecycle);
        }
        Some(Self { space, lifecycle, containers: all })
    }

    /// The container with this handle, or the only one whose handle begins like this.
    ///
    /// # Errors
    /// None or several: these.
    pub fn of_handle(cells: &'a [KnownCell], start: &str) -> Result<Self, Vec<Placed<'a>>> {
        let begins = |placed: &Placed<'_>| placed.handle.as_str().starts_with(start);
        let found: Vec<_> = placed(cells).filter(begins).collect();
        let exact = found.iter().filter(|placed| placed.handle.as_str() == start);
        // A handle can be twice when a cell that is gone had the container before.
        let exact = exact.max_by_key(|placed| placed.connected);
        let only = match found.as_slice() {
            [only] => Some(only),
            _ => None,
        };
        let Some(&one) = exact.or(only) else { return Err(found) };
        let Container { space, lifecycle, .. } = one.container;
        Ok(Self { space: space.clone(), lifecycle: *lifecycle, containers: vec![one] })
    }
}

/// An app with containers of one lifecycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct App<'a> {
    /// Guid.
    pub app: &'a str,
    /// Space.
    pub space: &'a SpaceGuid,
    /// Lifecycle of the containers.
    pub lifecycle: Lifecycle,
    /// Number of containers.
    pub containers: u32,
}

/// The apps of all cells.
#[derive(Debug, Default)]
pub struct Apps<'a>(BTreeMap<(Lifecycle, &'a SpaceGuid), BTreeMap<&'a str, u32>>);

impl<'a> Apps<'a> {
    /// The apps of these cells.
    #[must_use]
    pub fn of(cells: &'a [KnownCell]) -> Self {
        let mut apps = Self::default();
        for Placed { container, .. } in placed(cells) {
            let Container { app, space: Some(space), lifecycle: Some(lifecycle), .. } = container
            else {
                continue;
            };
            if !app.is_empty() {
                *apps.0.entry((*lifecycle, space)).or_default().entry(app).or_default() += 1;
            }
        }
        apps
    }

    /// The apps with containers that a group applies to, running ones first, ascending by
    /// space and guid.
    pub fn under<'b>(&'b self, group: &'b SecurityGroup) -> impl Iterator<Item = App<'b>> {
        let scopes = [(Lifecycle::Running, &group.running), (Lifecycle::Staging, &group.staging)];
        let places = scopes.into_iter().flat_map(|(lifecycle, scope)| {
            let every = self.0.keys().filter(move |(of, _)| scope.everywhere && *of == lifecycle);
            let bound = scope.spaces.iter().filter(|_| !scope.everywhere);
            every.copied().chain(bound.map(move |space| (lifecycle, space)))
        });
        places.flat_map(|(lifecycle, space)| {
            let entry = self.0.get_key_value(&(lifecycle, space));
            entry.into_iter().flat_map(move |((_, space), apps)| {
                apps.iter().map(move |(&app, &containers)| App {
                    app,
                    space,
                    lifecycle,
                    containers,
                })
            })
        })
    }
}

/// Apps and containers of a space and lifecycle, or of several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inhabited<'a> {
    /// Guids of the apps.
    pub apps: BTreeSet<&'a str>,
    /// Number of containers.
    pub containers: u64,
}

impl<'a> Inhabited<'a> {
    /// Adds those of another space.
    pub fn add(&mut self, other: &Self) {
        self.apps.extend(&other.apps);
        self.containers += other.containers;
    }
}

/// Apps and containers of all cells, by lifecycle and space.
#[derive(Debug, Default)]
pub struct Inhabitants<'a>(BTreeMap<Lifecycle, BTreeMap<&'a SpaceGuid, Inhabited<'a>>>);

impl<'a> Inhabitants<'a> {
    /// Those of these cells.
    #[must_use]
    pub fn of(cells: &'a [KnownCell]) -> Self {
        let mut all = Self::default();
        for Placed { container, .. } in placed(cells) {
            let Container { app, space: Some(space), lifecycle: Some(lifecycle), .. } = container
            else {
                continue;
            };
            let of = all.0.entry(*lifecycle).or_default().entry(space).or_default();
            of.containers += 1;
            if !app.is_empty() {
                of.apps.insert(app);
            }
        }
        all
    }

    /// The spaces with containers of this lifecycle.
    #[must_use]
    pub fn of_lifecycle(
        &self,
        lifecycle: Lifecycle,
    ) -> Option<&BTreeMap<&'a SpaceGuid, Inhabited<'a>>> {
        self.0.get(&lifecycle)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jiff::Timestamp;
    use model::{group::Scope, ids::GroupGuid};

    use super::*;
    use crate::{
        feed::{
            cells::{CellStatus, Here},
            inventory::{Inventory, Update},
        },
        reports::Agent,
    };

    fn space(text: &str) -> SpaceGuid {
        SpaceGuid::parse(text).unwrap()
    }

    fn container(app: &str, place: &str, lifecycle: Option<Lifecycle>, address: &str) -> Container {
        Container {
            address: address.parse().ok(),
            space: SpaceGuid::parse(place).ok(),
            app: app.into(),
            workload: "app".into(),
            lifecycle,
            enforcement: 1,
            rules: 0,
            reason: "".into(),
            isolated_rules: 0,
        }
    }

    fn cell(id: &str, connected: bool, containers: &[(&str, Container)]) -> KnownCell {
        let handle = |text: &str| ContainerHandle::parse(text).unwrap();
        let upserted = containers.iter().map(|(text, kept)| (handle(text), kept.clone()));
        let mut inventory = Inventory::default();
        inventory.apply(Update { upserted: upserted.collect(), ..Update::default() }).unwrap();
        let id = CellId::parse(id).unwrap();
        KnownCell {
            status: CellStatus { id, connected, report: None },
            here: Some(Here {
                agent: Arc::new(Agent::default()),
                changed_at: Timestamp::UNIX_EPOCH,
                details: None,
                lag: None,
                inventory: Some(Arc::new(inventory)),
            }),
        }
    }

    const RUNNING: Option<Lifecycle> = Some(Lifecycle::Running);
    const STAGING: Option<Lifecycle> = Some(Lifecycle::Staging);

    fn cells() -> Vec<KnownCell> {
        let silent = CellStatus { id: CellId::parse("c3").unwrap(), connected: true, report: None };
        vec![
            cell(
                "c1",
                false,
                &[
                    ("aa-1", container("web", "s0", RUNNING, "10.0.0.1")),
                    ("ab-1", container("build", "s1", STAGING, "10.0.0.2")),
                ],
            ),
            cell(
                "c2",
                true,
                &[
                    ("aa-1", container("web", "s1", RUNNING, "10.0.1.1")),
                    ("aa-2", container("web", "s1", STAGING, "fd00::1")),
                    ("b", container("", "", None, "")),
                ],
            ),
            KnownCell { status: silent, here: None },
        ]
    }

    fn found(cells: &[KnownCell], filter: &Filter) -> Vec<String> {
        let chosen = cells.iter().filter(|cell| filter.fits_cell(cell));
        let fitting = placed(chosen).filter(|placed| filter.fits(placed));
        fitting.map(|placed| format!("{}/{}", placed.cell, placed.handle)).collect()
    }

    #[test]
    fn each_part_of_a_filter_selects() {
        let all = cells();
        let none = Filter::default;
        let app = |text: &str| Some(text.to_owned());
        for (filter, expected) in [
            (none(), &["c1/aa-1", "c1/ab-1", "c2/aa-1", "c2/aa-2", "c2/b"][..]),
            (Filter { cell: CellId::parse("c1").ok(), ..none() }, &["c1/aa-1", "c1/ab-1"]),
            (Filter { app: app("web"), ..none() }, &["c1/aa-1", "c2/aa-1", "c2/aa-2"]),
            (Filter { space: Some(space("s1")), ..none() }, &["c1/ab-1", "c2/aa-1", "c2/aa-2"]),
            (Filter { handle: "aa-2".into(), ..none() }, &["c2/aa-2"]),
            (Filter { address: "fd00::1".parse().ok(), ..none() }, &["c2/aa-2"]),
            (Filter { app: app("web"), handle: "ab".into(), ..none() }, &[]),
        ] {
            assert_eq!(found(&all, &filter), expected, "{filter:?}");
        }
        assert_eq!(unknown(&all).iter().map(|id| id.as_str()).collect::<Vec<_>>(), ["c3"]);
    }

    #[test]
    fn an_app_has_the_lifecycle_of_its_containers() {
        let all = cells();
        let of = |app, lifecycle| {
            let subject = Subject::of_app(&all, app, lifecycle)?;
            Some((subject.lifecycle, subject.space, subject.containers.len()))
        };
        assert_eq!(of("web", None), Some((RUNNING, Some(space("s1")), 2)), "the connected cell");
        assert_eq!(of("web", STAGING), Some((STAGING, Some(space("s1")), 1)));
        assert_eq!(of("build", None), Some((STAGING, Some(space("s1")), 1)));
        assert_eq!(of("build", RUNNING), Some((RUNNING, Some(space("s1")), 0)));
        assert_eq!(of("other", None), None);
    }

    #[test]
    fn a_handle_may_be_cut_where_one_container_is_meant() {
        let all = cells();
        let of = |start| match Subject::of_handle(&all, start) {
            Ok(subject) => Ok(format!("{}", subject.containers[0].cell)),
            Err(found) => Err(found.len()),
        };
        assert_eq!(of("aa-1"), Ok("c2".to_owned()), "the connected cell has it");
        assert_eq!(of("ab"), Ok("c1".to_owned()));
        assert_eq!(of("b"), Ok("c2".to_owned()));
        assert_eq!(of("a"), Err(4));
        assert_eq!(of("x"), Err(0));
        let alone = Subject::of_handle(&all, "b").unwrap();
        assert_eq!((alone.space, alone.lifecycle), (None, None));
    }

    #[test]
    fn a_group_has_the_apps_of_its_spaces_and_lifecycles() {
        let all = cells();
        let apps = Apps::of(&all);
        let under = |running: Scope, staging: Scope| {
            let group = SecurityGroup {
                guid: GroupGuid::parse("g").unwrap(),
                name: String::new(),
                rules: Vec::new(),
                running,
                staging,
            };
            let apps = apps.under(&group);
            apps.map(|app| format!("{}/{} {}", app.space, app.app, app.containers))
                .collect::<Vec<_>>()
        };
        let everywhere = Scope { everywhere: true, ..Scope::default() };
        let bound = Scope { everywhere: false, spaces: [space("s1"), space("s9")].into() };
        assert_eq!(under(everywhere.clone(), Scope::default()), ["s0/web 1", "s1/web 1"]);
        assert_eq!(under(bound.clone(), Scope::default()), ["s1/web 1"]);
        assert_eq!(under(Scope::default(), everywhere), ["s1/build 1", "s1/web 1"]);
        assert_eq!(under(bound.clone(), bound), ["s1/web 1", "s1/build 1", "s1/web 1"]);
    }
}
