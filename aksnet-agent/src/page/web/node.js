// What the node is, what of it is used up, and how the agent on it is doing.

import { byId, define, fill, make, say, states } from "./dom.js";
import { byteRate, exact, long, packetRate, percent, time, words } from "./format.js";

const known = (text) => [text ? words(text) : ["not known", "dim"]];

export const totals = (snapshot) => {
  const t = snapshot.totals;
  const share = t.connections ? ` ${percent(t.nated / t.connections)}` : "";
  const dropped = snapshot.drops.causes.reduce((sum, cause) => sum + cause.packets, 0);
  define(byId("totals"), [
    ["Packets", [packetRate(t.packets_per_second)]],
    ["Bytes", [byteRate(t.bytes_per_second)]],
    ["Flows", [exact(t.flows)]],
    ["Open connections", [exact(t.open)]],
    ["Rewritten by NAT", [exact(t.nated), [share, "dim"]]],
    ["Dropped in the last minute", [dropped ? [`▼ ${exact(dropped)}`, "bad"] : "0"]],
  ]);
};

export const facts = ({ node }) => {
  define(byId("facts"), [
    ["Network plugin", known(node.cni)],
    ["Policies enforced by", known(node.policy_engine)],
    ["Services by", known(node.proxy_mode)],
    ["Zone", [node.zone || ["none, or not known", "dim"]]],
    ["Kernel", [node.kernel || ["not known", "dim"]]],
  ]);
};

/** What is used up: name, in use, limit, ratio. */
const gauges = (node) => {
  const found = [["Flow table", node.flow_cells, node.flow_cells_limit, "cells"]];
  if (node.conntrack.entries != null) {
    found.push(["Conntrack table", node.conntrack.entries, node.conntrack.limit, "entries"]);
  }
  for (const ports of node.snat_ports ?? []) {
    const name = `SNAT ports, ${ports.protocol} ${ports.family === "ipv6" ? "IPv6" : "IPv4"}`;
    found.push([name, ports.in_use, ports.limit, "to the busiest destination", ports.saturation]);
  }
  for (const ports of node.azure_snat_ports) {
    found.push([`Load balancer's SNAT ports, ${ports.protocol}`, ports.in_use, ports.limit, "ports", ports.saturation]);
  }
  for (const pods of node.pod_ips) {
    const leaked = pods.leaked ? `, ${exact(pods.leaked)} without a pod` : "";
    found.push([`Pod addresses by ${words(pods.source)}`, pods.in_use, pods.limit, `addresses${leaked}`]);
  }
  return found;
};

const FULL = 0.9;
const FILLING = 0.7;

const gauge = (group, [name, used, limit, unit, ratio]) => {
  const share = ratio ?? (limit ? used / limit : undefined);
  const [term, value, track] = group.children;
  say(term, name);
  const level = share >= FULL ? "full" : share >= FILLING ? "filling" : "";
  const said = { full: "nearly full: ", filling: "filling up: ", "": "" }[level];
  fill(value, [
    [said, level === "full" ? "bad" : "warn"],
    ratio == null && limit ? `${exact(used)} of ${exact(limit)} ${unit}` : ratio == null ? `${exact(used)} ${unit}` : `${exact(used)} in use`,
    [share === undefined ? "" : ratio == null ? ` · ${percent(share)}` : ` · ${percent(share)} ${unit}`, "dim"],
  ]);
  track.hidden = share === undefined;
  const bar = track.firstElementChild;
  bar.className = level;
  bar.style.width = `${Math.min(100, (share ?? 0) * 100)}%`;
};

const showGauges = (node) => {
  const list = byId("gauges");
  const all = gauges(node);
  while (list.childElementCount < all.length) {
    const group = make("div");
    const track = make("dd", "track");
    track.ariaHidden = "true";
    track.append(make("span"));
    group.append(make("dt"), make("dd"), track);
    list.append(group);
  }
  while (list.childElementCount > all.length) list.lastElementChild.remove();
  all.forEach((one, at) => gauge(list.children[at], one));
};

export const health = (snapshot, drawn) => {
  const { health: agent, node } = snapshot;
  const losses = [
    [node.conntrack.insert_failed, "inserts failed"],
    [node.conntrack.drop, "packets dropped"],
    [node.conntrack.early_drop, "entries evicted"],
  ].filter(([n]) => n > 0).map(([n, what]) => `${exact(n)} ${what}`);
  define(byId("agent"), [
    ["State", [
      agent?.ready ? ["✓ ready", "good"] : ["✗ not ready", "bad"],
      agent?.not_ready_because ? `: ${agent.not_ready_because}` : "",
    ]],
    ["Version", [agent?.version ?? "–", [agent?.revision ? ` (${agent.revision})` : "", "dim"]]],
    ["Running for", [agent ? long(agent.uptime_seconds) : "–"]],
    ["Sweeps", [agent ? exact(agent.sweeps) : "–", agent?.sweep_error ? [` the last failed: ${agent.sweep_error}`, "bad"] : ["", ""]]],
    ["Rates over", [time(snapshot.interval_ms * 1e6)]],
    ["Conntrack losses since start", [losses.join(", ") || "none"]],
    ["This look", [time(snapshot.took_us * 1000), [` at the agent, ${time(drawn * 1e6)} to draw`, "dim"]]],
  ]);
  states(byId("programs"), node.programs.map((p) => [p.program, p.hook, p.up, p.up ? "runs" : "does not run"]));
  states(byId("sources"), node.sources.map((s) => [words(s.source), "", s.synced, s.synced ? "in step" : "not in step"]));
  showGauges(node);
};
