// The page: asks the agent each second for what is chosen, and shows the answer.

import { CAUSES, CLASSES, DESTINATIONS, KINDS, RECORDS, WORKLOADS, flows } from "./columns.js";
import { byId, make, say } from "./dom.js";
import { clock, words } from "./format.js";
import { facts, health, totals } from "./node.js";
import { KINDS as KIND_ORDER, Passage } from "./passage.js";
import { Source } from "./source.js";
import { Pager, Table } from "./table.js";

/** The most rows that the agent gives. */
const MOST = 5000;
/** Without a sweep for so many milliseconds what is shown is old. */
const STALE = 10_000;
/** Between the last key and the question. */
const TYPING = 200;

let shown;
/** When `shown` came, and when the sweep it is of was first heard of: by this browser's clock. */
let heardAt = 0;
let sweptAt = 0;
let drawn = 0;

const passage = new Passage(byId("drawing"));
const costs = new Table(byId("cost"), KINDS, "Nothing was seen yet.");
const classes = new Table(byId("classes"), CLASSES, "Nothing was seen yet.");
const causes = new Table(byId("t-causes"), CAUSES, "Nothing was dropped in the last minute.");
const destinations = new Table(byId("t-destinations"), DESTINATIONS, "No connection uses a port of the node's.");
const workloadTable = new Table(byId("t-workloads"), WORKLOADS, "No workload's traffic fits what is chosen.");
const flowTable = new Table(byId("t-flows"), flows(() => shown.unix_ms), "No flow fits what is chosen.");
const workloads = new Pager(byId("p-workloads"), workloadTable, "pairs of workloads", 15);
const flowPages = new Pager(byId("p-flows"), flowTable, "flows", 50);
const recordTable = new Table(byId("t-records"), RECORDS, "No drop is remembered that fits what is chosen.");
const records = new Pager(byId("p-records"), recordTable, "drops", 15);
const pagers = [workloads, flowPages, records];

// What is chosen: it is in the address, too, so that it outlives a reload and can be passed on.

const form = byId("filter");
const choice = new URLSearchParams(location.search);
const FIELDS = ["text", "class", "nat", "namespace"];

/** Offers what a field of the address had, though nothing of it was seen yet. */
const offer = (select, value) => {
  if ([...select.options].some((option) => option.value === value)) return;
  const option = make("option", "", words(value));
  option.value = value;
  select.append(option);
};

const readChoice = () => {
  for (const name of FIELDS) {
    const value = choice.get(name) ?? "";
    const field = form.elements[name];
    if (field.tagName === "SELECT") offer(field, value);
    field.value = value;
  }
};

const order = () => [choice.get("sort") ?? "byte_rate", choice.get("reverse") === "true"];

const query = () => {
  const asked = new URLSearchParams();
  for (const name of [...FIELDS, "sort", "reverse"]) {
    const value = choice.get(name);
    if (value) asked.set(name, value);
  }
  asked.set("limit", Math.min(MOST, Math.max(...pagers.map((pager) => pager.wanted))));
  return asked;
};

const choose = (name, value) => {
  if (value) choice.set(name, value);
  else choice.delete(name);
};

const chosen = () => {
  const text = choice.toString();
  history.replaceState(null, "", text ? `?${text}${location.hash}` : location.pathname + location.hash);
  for (const table of [workloadTable, flowTable]) table.order(...order());
  source.ask();
};

// How it stands with the agent. It is read out when it changes, so it says nothing that changes all the time.

const state = (name, text) => {
  const element = byId("state");
  if (element.dataset.state !== name) element.dataset.state = name;
  document.body.classList.toggle("old", name === "gone" || name === "stale");
  say(element, text);
};

const assess = () => {
  if (source.paused) return state("paused", "Paused");
  const since = performance.now() - sweptAt;
  if (since > STALE + shown.interval_ms) {
    return state("stale", `The agent answers, but has not looked since ${clock(shown.unix_ms)} UTC`);
  }
  if (shown.health?.sweep_error) return state("ill", `The last sweep failed: ${shown.health.sweep_error}`);
  if (shown.health && !shown.health.ready) return state("ill", `Not ready: ${shown.health.not_ready_because}`);
  return state("live", "Live");
};

/** Adds names to what a list offers. */
const suggest = (list, names, made) => {
  const offered = new Set([...list.children].map((option) => option.value));
  for (const name of names) {
    if (!name || offered.has(name)) continue;
    offered.add(name);
    const option = make("option", "", made(name));
    option.value = name;
    list.append(option);
  }
};

const show = () => {
  const began = performance.now();
  const name = shown.node.name || "this node";
  say(byId("node-name"), name);
  say(byId("as-of"), clock(shown.unix_ms));
  byId("as-of").dateTime = new Date(shown.unix_ms).toISOString();
  if (document.title !== `${name} · aksnet`) document.title = `${name} · aksnet`;
  totals(shown);
  facts(shown);
  passage.show(shown);
  costs.show(shown.nat.kinds.toSorted((a, b) => KIND_ORDER.indexOf(a.nat) - KIND_ORDER.indexOf(b.nat)));
  classes.show(shown.nat.classes);
  workloads.show(shown.workloads, shown.pairs, MOST);
  flowPages.show(shown.flows, shown.matching, MOST);
  causes.show(shown.drops.causes);
  records.show(shown.drops.records, shown.drops.matching, MOST);
  destinations.show(shown.nat.destinations.slice(0, 10));
  suggest(byId("f-class"), shown.nat.classes.map((row) => row.class), words);
  const pairs = shown.workloads.flatMap((pair) => [pair.from.namespace, pair.to.namespace]);
  suggest(byId("namespaces"), pairs, () => "");
  health(shown, drawn);
  drawn = performance.now() - began;
  document.documentElement.dataset.drawn = drawn.toFixed(1);
};

const source = new Source(query, {
  heard(snapshot) {
    heardAt = performance.now();
    if (snapshot.unix_ms !== shown?.unix_ms) sweptAt = heardAt;
    shown = snapshot;
    say(byId("f-error"), "");
    show();
    assess();
  },
  refused(why) {
    say(byId("f-error"), why);
  },
  gone() {
    const last = shown ? `: what is shown is of ${clock(shown.unix_ms)} UTC` : "";
    state("gone", `No answer from the agent${last}. Trying again`);
  },
});

for (const table of [workloadTable, flowTable]) {
  table.onsort = (sort) => {
    const [now, reverse] = order();
    choose("reverse", sort === now && !reverse ? "true" : "");
    choose("sort", sort === "byte_rate" ? "" : sort);
    chosen();
  };
}
for (const pager of pagers) {
  pager.onturn = () => {
    if (shown) show();
    source.ask();
  };
}

let typing;
form.addEventListener("input", (event) => {
  choose(event.target.name, event.target.value.trim());
  for (const pager of pagers) pager.page = 0;
  clearTimeout(typing);
  typing = setTimeout(chosen, TYPING);
});
form.addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => {
  for (const name of FIELDS) choose(name, "");
  for (const pager of pagers) pager.page = 0;
  readChoice();
  chosen();
});
byId("pause").addEventListener("click", () => {
  const paused = !source.paused;
  byId("pause").ariaPressed = String(paused);
  if (paused) state("paused", "Paused");
  else state("asking", "Asking the agent");
  source.pause(paused);
});

readChoice();
chosen();
