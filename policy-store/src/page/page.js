// Live view of a policy store. Every text from the server becomes a text node: the page
// never parses a string as HTML.
"use strict";

const state = { summary: null, cells: new Map(), changes: new Map(), clock: 0 };
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const number = new Intl.NumberFormat("en");
const natural = new Intl.Collator("en", { numeric: true }).compare;

function age(milliseconds) {
  if (milliseconds === null || milliseconds === undefined) return "never";
  const seconds = Math.max(0, (state.clock - milliseconds) / 1000);
  if (seconds < 10) return `${seconds.toFixed(1)} s ago`;
  if (seconds < 120) return `${Math.round(seconds)} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

// ---- live data

function connect() {
  const source = new EventSource("live");
  source.onopen = () => show_connection(true, "live");
  source.onerror = () => show_connection(false, "no connection to the policy store, trying again");
  source.onmessage = (event) => {
    const update = JSON.parse(event.data);
    if (update.reset) {
      state.cells.clear();
      state.changes.clear();
      state.announced = undefined;
    }
    state.clock = update.now;
    state.summary = update.summary;
    for (const id of update.gone) state.cells.delete(id);
    for (const cell of update.cells) state.cells.set(cell.id, cell);
    for (const change of update.changes) state.changes.set(change.generation, change);
    const kept = [...state.changes.keys()].sort((a, b) => b - a).slice(0, 20);
    for (const generation of state.changes.keys()) if (!kept.includes(generation)) state.changes.delete(generation);
    draw();
  };
}

function show_connection(live, text) {
  byId("connection").className = live ? "live" : "";
  byId("connection").textContent = text;
}

function draw() {
  draw_summary();
  draw_changes();
  draw_cells();
  announce();
}

function rollout({ generation, step, steps, cells, reached, since, stopped }) {
  const at = `generation ${number.format(generation)}, step ${step} of ${steps}, ${age(since)}: `;
  return at + (stopped === "" ? `${reached} of ${cells} cells` : `stopped: ${stopped}`);
}

function draw_summary() {
  const s = state.summary;
  const cells = [...state.cells.values()];
  const count = (is) => cells.filter(is).length;
  const sum = (of) => cells.reduce((total, cell) => total + (of(cell) ?? 0), 0);
  const behind = count((cell) => cell.behind > 0);
  const gone = count((cell) => !cell.connected);
  const isolated = sum((cell) => cell.isolated_rules);
  const counted = (of) => (cells.some((cell) => cell[of] !== null) ? number.format(sum((cell) => cell[of])) : "not counted");
  const items = [
    ["generation", number.format(s.generation)],
    ...(s.frozen === null ? [] : [
      ["cells frozen", `generation ${number.format(s.frozen.generation)}, ${age(s.frozen.since)}: ${s.frozen.reason} (${s.frozen.by})`, "warn"],
    ]),
    ...(s.rollout === null ? [] : [
      ["roll-out", rollout(s.rollout), s.rollout.stopped === "" ? "" : "fail"],
    ]),
    ["security groups", number.format(s.groups)],
    ["last sync", age(s.synced_at), s.synced_at === null || state.clock - s.synced_at > 120000 ? "fail" : ""],
    ["Cloud Controller's stamp", age(s.watermark)],
    ["leading syncer", s.writer || "none yet"],
    ["fencing token", s.token === null ? "none" : number.format(s.token)],
    ["cells connected", `${number.format(cells.length - gone)} of ${number.format(cells.length)}`, gone ? "fail" : ""],
    ["cells behind", number.format(behind), behind ? "warn" : ""],
    ["containers", number.format(sum((cell) => cell.containers))],
    ["isolated rules", number.format(isolated), isolated ? "warn" : ""],
    ["packets allowed", counted("allowed")],
    ["packets denied", counted("denied")],
  ];
  const refused = s.refused_removal;
  if (refused) {
    const accepted = refused.accepted_until > state.clock ? "accepted, " : "";
    items.push(["removal refused", `${accepted}${number.format(refused.removed)} of ${number.format(refused.stored)} groups, ${age(refused.at)}`, "fail"]);
  }
  byId("summary").replaceChildren(
    ...items.map(([name, value, level]) =>
      element("div", { class: level || "" }, element("dt", {}, name), element("dd", { title: value }, value))),
  );
}

const HOPS = ["notice", "read", "commit", "enforce"];

function draw_changes() {
  const changes = [...state.changes.values()].sort((a, b) => b.generation - a.generation);
  byId("no-changes").hidden = changes.length > 0;
  byId("changes").hidden = changes.length === 0;
  const longest = Math.max(1, ...changes.map(total));
  byId("changes").tBodies[0].replaceChildren(...changes.map((change) => change_row(change, longest)));
}

const total = (change) => HOPS.reduce((sum, hop) => sum + (change.hops[hop] ?? 0), 0);

function change_row(change, longest) {
  const signs = { added: "+", changed: "~", removed: "\u2212" };
  const named = change.groups.map((group) => `${signs[group.kind]} ${group.name || group.guid}`);
  const more = change.added + change.changed + change.removed - change.groups.length;
  if (more > 0) named.push(`and ${number.format(more)} more`);
  const parts = HOPS.filter((hop) => change.hops[hop] !== null);
  const bar = element("div", { class: "bar", "aria-hidden": "true" });
  for (const hop of parts) {
    const part = element("span", { class: hop });
    part.style.width = `${(100 * change.hops[hop]) / longest}%`;
    bar.append(part);
  }
  const times = parts.map((hop) => `${hop} ${Math.round(change.hops[hop])}`).join(", ");
  return element("tr", {},
    element("td", {}, element("button", { class: "link", onclick: () => show_change(change.generation) }, String(change.generation))),
    element("td", {}, age(change.committed_at)),
    element("td", {}, named.join(", ")),
    element("td", {}, bar, element("span", { class: "times" }, times)),
    element("td", {}, `${number.format(change.cells_enforced)} of ${number.format(change.cells)}`));
}

function level(cell) {
  if (!cell.connected) return "gone";
  if (cell.behind === 0) return "current";
  return cell.behind_since !== null && state.clock - cell.behind_since > 10000 ? "late" : "behind";
}

const SIGNS = { current: "\u2022", behind: "\u2026", late: "!", gone: "\u00d7" };
const WORDS = { current: "enforces the newest generation", behind: "is behind", late: "is behind for more than 10 seconds", gone: "is not connected" };

// Keeps the buttons that exist, so that the keyboard focus stays where it is.
function draw_cells() {
  const list = byId("cells");
  const buttons = new Map([...list.querySelectorAll("button")].map((button) => [button.dataset.id, button]));
  const cells = [...state.cells.values()].sort((a, b) => natural(a.id, b.id));
  for (const [id, button] of buttons) if (!state.cells.has(id)) button.parentElement.remove();
  cells.forEach((cell, index) => {
    let button = buttons.get(cell.id);
    if (!button) {
      button = element("button", { type: "button", tabindex: "-1", onclick: () => show_cell(cell.id) });
      button.dataset.id = cell.id;
      list.insertBefore(element("li", {}, button), list.children[index] ?? null);
    }
    const is = level(cell);
    const words = `${cell.id} ${WORDS[is]}, ${cell.containers} containers, ${cell.isolated_rules} isolated rules`;
    const drawn = `${is} ${words}`;
    if (button.dataset.drawn === drawn) return;
    button.dataset.drawn = drawn;
    button.className = `cell ${is}${cell.isolated_rules > 0 ? " isolated" : ""}`;
    button.textContent = SIGNS[is];
    button.title = words;
    button.setAttribute("aria-label", words);
  });
  const first = list.querySelector("button");
  if (first && !list.querySelector('button[tabindex="0"]')) first.tabIndex = 0;
}

// Says in words what changed, for screen readers, at most once in five seconds.
function announce() {
  const cells = [...state.cells.values()];
  const gone = cells.filter((cell) => !cell.connected).length;
  const late = cells.filter((cell) => level(cell) === "late").length;
  const text = `Generation ${state.summary.generation}; ${cells.length} cells, ${gone} not connected, ${late} late.`;
  if (state.announced && (state.announced.text === text || state.clock - state.announced.at < 5000)) return;
  state.announced = { text, at: state.clock };
  byId("announcement").textContent = text;
}

byId("cells").addEventListener("keydown", (event) => {
  const buttons = [...byId("cells").querySelectorAll("button")];
  const at = buttons.indexOf(document.activeElement);
  if (at < 0) return;
  const tops = buttons.map((button) => button.offsetTop);
  const columns = tops.filter((top) => top === tops[0]).length;
  const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: buttons.length - 1 - at };
  if (!(event.key in moves)) return;
  event.preventDefault();
  const next = buttons[Math.min(buttons.length - 1, Math.max(0, at + moves[event.key]))];
  buttons[at].tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

// ---- questions

async function ask(path, parameters) {
  const response = await fetch(`${path}?${new URLSearchParams(parameters)}`);
  const answer = await response.json().catch(() => ({ error: `the policy store answered with status ${response.status}` }));
  if (!response.ok) throw new Error(answer.error || `status ${response.status}`);
  return answer;
}

// Shows what `make` returns, or the error, unless a later question was asked meanwhile.
async function answer_into(region, make) {
  const turn = (region.dataset.turn = String(Number(region.dataset.turn || 0) + 1));
  let shown;
  try {
    shown = await make();
  } catch (error) {
    shown = [element("p", { class: "error" }, error.message)];
  }
  if (region.dataset.turn === turn) region.replaceChildren(...shown);
}

function table(columns, rows) {
  const head = element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)));
  const body = rows.map((row) => element("tr", {}, ...row.map((value) => element("td", {}, value ?? ""))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

const link = (text, action) => element("button", { class: "link", type: "button", onclick: action }, text);

function containers_table(containers) {
  return table(["container", "cell", "app", "space", "address", "state", "rules"], containers.map((c) => [
    link(c.handle, () => fill("handle", c.handle)),
    link(c.connected ? c.cell : `${c.cell} (not connected)`, () => show_cell(c.cell)),
    link(c.app, () => fill("app_guid", c.app)),
    link(c.space, () => fill("space_guid", c.space)),
    c.ip,
    c.reason ? `${c.state}: ${c.reason}` : c.state,
    c.isolated_rules ? `${c.rules}, ${c.isolated_rules} isolated` : String(c.rules),
  ]));
}

const rules_table = (rules) => table(["protocol", "destination", "ports or ICMP type/code", "log", "description"],
  rules.map((rule) => [rule.protocol, rule.destination, rule.ports, rule.log ? "yes" : "", rule.description]));

// Puts a subject into the explain form.
function fill(kind, subject) {
  const form = byId("explain");
  byId("details").close();
  form.elements.kind.value = kind;
  form.elements.subject.value = subject;
  form.elements.destination.focus();
  form.scrollIntoView({ block: "center" });
}

function details(title, ...children) {
  byId("details-title").textContent = title;
  byId("details-body").replaceChildren(...children);
  if (!byId("details").open) byId("details").showModal();
}

function listed(pairs) {
  return element("dl", {}, ...pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", { title: String(value) }, String(value)))));
}

const milliseconds = (value) => (value === null ? "unknown" : `${number.format(Math.round(value))} ms`);

function show_cell(id) {
  details(id, element("p", {}, "asking"));
  answer_into(byId("details-body"), async () => {
    const found = await ask("search", { cell: id });
    const cell = state.cells.get(id);
    const shown = [];
    if (cell) {
      shown.push(element("p", {}, `${id} ${WORDS[level(cell)]}.`), listed([
        ["generation in force", cell.enforced], ["behind, generations", cell.behind], ["last report", age(cell.reported_at)],
        ["lag of that generation", milliseconds(cell.lag)], ["data plane", cell.plane || "unknown"], ["version", cell.version || "unknown"],
        ["drift healed", cell.drift_healed], ["packets denied", cell.denied ?? "not counted"], ["unattributed packets", cell.unattributed],
      ]));
      if (cell.last_error) shown.push(element("p", { class: "error" }, cell.last_error));
    }
    if (found.isolated.length) {
      shown.push(element("h3", {}, `Isolated rules (${found.isolated_total})`),
        table(["group", "rule", "reason"], found.isolated.map((rule) => [rule.group, String(rule.index), rule.reason])));
    }
    shown.push(element("h3", {}, `Containers (${number.format(found.containers_total)})`), containers_table(found.containers));
    return shown;
  });
}

function show_change(generation) {
  const change = state.changes.get(generation);
  if (!change) return;
  details(`Generation ${generation}`,
    listed([["syncer", change.owner], ["trace id", change.trace_id || "none"], ["added", change.added], ["changed", change.changed], ["removed", change.removed],
      ["median of the cells", milliseconds(change.median)], ["99th percentile", milliseconds(change.p99)], ["slowest", milliseconds(change.slowest)]]),
    element("h3", {}, "Groups"),
    table(["group", "GUID", "change"], change.groups.map((group) => [link(group.name, () => search_for(group.guid)), group.guid, group.kind])),
    element("h3", {}, "Slowest cells"),
    table(["cell", "after the commit"], change.slowest_cells.map((cell) => [link(cell.id, () => show_cell(cell.id)), cell.after_commit === null ? (cell.connected ? "not yet" : "not connected") : milliseconds(cell.after_commit)])));
}

function search_for(text) {
  byId("details").close();
  byId("q").value = text;
  byId("search").requestSubmit();
}

byId("search").addEventListener("submit", (event) => {
  event.preventDefault();
  const q = byId("q").value.trim();
  if (!q) return;
  answer_into(byId("found"), async () => {
    const found = await ask("search", { q });
    const shown = [];
    for (const group of found.groups) {
      shown.push(element("h3", {}, `Group ${group.name}`),
        element("p", {}, element("code", {}, group.guid), ` applies to running apps ${scope(group.running_default, group.running)}; to staging ${scope(group.staging_default, group.staging)}.`),
        rules_table(group.rules));
    }
    if (found.cells.length) shown.push(element("h3", {}, "Cells"), element("p", {}, ...found.cells.flatMap((id) => [link(id, () => show_cell(id)), " "])));
    if (found.containers_total) shown.push(element("h3", {}, `Containers (${number.format(found.containers_total)})`), containers_table(found.containers));
    if (!shown.length) shown.push(element("p", {}, `Nothing found for ${q}.`));
    if (found.unknown_cells) shown.push(element("p", {}, `${found.unknown_cells} known cells have not reported their containers to this policy store.`));
    return shown;
  });
});

function scope(everywhere, spaces) {
  if (everywhere) return "in all spaces";
  if (!spaces.length) return "in no space";
  return `in ${spaces.length === 1 ? "space" : `${number.format(spaces.length)} spaces:`} ${spaces.slice(0, 20).join(", ")}${spaces.length > 20 ? ", ..." : ""}`;
}

byId("explain").addEventListener("submit", (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const parameters = { [form.get("kind")]: form.get("subject").trim(), protocol: form.get("protocol"), destination: form.get("destination").trim(), port: form.get("port") || "0" };
  if (form.get("staging")) parameters.staging = "true";
  answer_into(byId("explained"), async () => {
    const answer = await ask("explain", parameters);
    const shown = [element("p", { class: answer.allowed ? "allowed" : "denied" }, answer.allowed ? "Allowed" : "Denied"), element("p", {}, answer.reason)];
    const remarks = (title, rows) => rows.length && shown.push(element("h3", {}, title),
      table(["group", "rule", "text", "reason"], rows.map((row) => [row.group, String(row.index), row.text, row.reason])));
    remarks("Rules that are not enforced", answer.not_enforced);
    remarks("Rules that come close", answer.near_misses);
    if (answer.elsewhere.length) shown.push(element("h3", {}, "Groups that allow it, bound elsewhere"),
      element("p", {}, ...answer.elsewhere.flatMap((group) => [link(group.name, () => search_for(group.guid)), " "])));
    if (!answer.space_known) shown.push(element("p", {}, "No group is bound to this space: only global groups apply, or the space does not exist."));
    if (answer.containers_total) shown.push(element("h3", {}, `Containers (${number.format(answer.containers_total)})`), containers_table(answer.containers));
    return shown;
  });
});

// Times grow older without news.
setInterval(() => {
  if (!state.summary) return;
  state.clock += 1000;
  draw();
}, 1000);

connect();
