// What the tables show: a cell is a list of texts, some with a class of their own.

import {
  ago, byteRate, bytes, clock, count, exact, nat, overhead, packetRate, percent, socket, time, who, words,
} from "./format.js";

const number = "number";

const owner = (end) => {
  const name = who(end);
  const slash = end.namespace ? name.indexOf("/") + 1 : 0;
  return [[name.slice(0, slash), "dim"], [name.slice(slash), "name"]];
};

const pod = (end) => [end.pod === end.workload ? "" : end.pod, "second dim"];

/** What NAT does, with its lane's colour. */
const kind = (name) => [[nat(name), `kind ${name}`]];

/** The median, and what one in a hundred exceeds. */
const timing = (t) => (t ? [time(t.p50_ns), [`99 %: ${time(t.p99_ns)}`, "second dim"]] : [["–", "dim"]]);

const drops = (n) => (n > 0 ? [[`▼ ${count(n)}`, "bad"]] : [["0", "dim"]]);

const quiet = (n, shown) => (n > 0 ? [shown(n)] : [["0", "dim"]]);

const TIMES = [
  { label: "First packet", className: number, note: "Median time between ENTER and EXIT of packets that open a connection",
    sort: "first", cell: (row) => timing(row.first) },
  { label: "Later packets", className: number, note: "Median time between ENTER and EXIT of all other packets",
    sort: "established", cell: (row) => timing(row.established) },
];

const RATES = [
  { label: "Packets", className: number, sort: "packet_rate",
    cell: (row) => quiet(row.packets_per_second, packetRate) },
  { label: "Bytes", className: number, sort: "byte_rate", cell: (row) => quiet(row.bytes_per_second, byteRate) },
];

const unsorted = ({ sort, ...column }) => column;

const cost = [
  { label: "Connections", className: number, cell: (row) => quiet(row.connections, exact) },
  ...RATES.map(unsorted),
  ...TIMES.map(unsorted),
  { label: "First, over no NAT", className: number, cell: (row) => [overhead(row.first_overhead_ns)] },
  { label: "Later, over no NAT", className: number, cell: (row) => [overhead(row.established_overhead_ns)] },
];

export const KINDS = [{ label: "NAT", cell: (row) => kind(row.nat) }, ...cost];

export const CLASSES = [
  { label: "Class", cell: (row) => [words(row.class)] },
  { label: "NAT", cell: (row) => kind(row.nat) },
  ...cost,
];

export const WORKLOADS = [
  { label: "From", className: "owner", cell: (row) => owner(row.from) },
  { label: "To", className: "owner", cell: (row) => owner(row.to) },
  { label: "Class", cell: (row) => [row.classes.map(words).join(", ")] },
  { label: "Open", className: number, note: "Connections that are not finished", cell: (row) => quiet(row.open, exact) },
  { label: "By NAT", className: number, note: "Of all connections, those that NAT rewrites",
    cell: ({ nated, connections: all }) =>
      nated > 0 ? [exact(nated), [` of ${exact(all)}`, "dim"]] : [["0", "dim"]] },
  { label: "Packets", className: number, sort: "packet_rate",
    cell: (row) => quiet(row.packets_out + row.packets_in, packetRate) },
  { label: "Bytes", className: number, sort: "byte_rate",
    cell: (row) => [
      ...quiet(row.bytes_out + row.bytes_in, byteRate),
      [`out ${byteRate(row.bytes_out)}, in ${byteRate(row.bytes_in)}`, "second dim"],
    ] },
  ...TIMES,
  { label: "Drops", className: number, sort: "drops", cell: (row) => drops(row.drops) },
];

/** Addresses before NAT, and after: what is rewritten stands out. */
const passage = ({ before, after }) => {
  const from = socket(before.src, before.src_port);
  const to = socket(before.dst, before.dst_port);
  const first = [[from, "mono"], [" → ", "dim"], [to, "mono"]];
  if (!after) return [...first, ["not seen to leave", "second dim"]];
  const fromAfter = socket(after.src, after.src_port);
  const toAfter = socket(after.dst, after.dst_port);
  if (from === fromAfter && to === toAfter) return [...first, ["leaves as it came", "second dim"]];
  const end = (was, is) => [is, was === is ? "mono dim" : "mono changed"];
  return [...first, ["", "break"], ["becomes ", "dim"], end(from, fromAfter), [" → ", "dim"], end(to, toAfter)];
};

export const flows = (now) => [
  { label: "From", className: "owner",
    cell: (row) => [...owner(row.from), pod(row.from), [row.in_interface ? `in by ${row.in_interface}` : "", "second dim"]] },
  { label: "To", className: "owner",
    cell: (row) => [...owner(row.to), pod(row.to), [row.out_interface ? `out by ${row.out_interface}` : "", "second dim"]] },
  { label: "Class", cell: (row) => [words(row.class), [words(row.scope), "second dim"]] },
  { label: "NAT", cell: (row) => [...kind(row.nat), [row.reply ? "replies" : "", "second dim"]] },
  { label: "Before and after NAT", cell: (row) => [[`${row.protocol} `, "dim"], ...passage(row)] },
  ...RATES,
  { label: "Packets so far", className: number, sort: "packets", cell: (row) => [count(row.packets)] },
  { label: "Bytes so far", className: number, sort: "bytes", cell: (row) => [bytes(row.bytes)] },
  ...TIMES,
  { label: "Drops", className: number, sort: "drops",
    cell: (row) => [...drops(row.drops), [row.drop_cause ? words(row.drop_cause) : "", "second"]] },
  { label: "Last", className: number, note: "How long ago its last packet was", sort: "recent",
    cell: (row) => [[ago(now() - row.time_ms), "dim"]] },
];

export const CAUSES = [
  { label: "Cause", cell: (row) => [[words(row.cause), "bad"]] },
  { label: "Policy", cell: (row) => [[row.policy.replaceAll(",", ", ") || "–", "name"]] },
  { label: "Packets", className: number, cell: (row) => [exact(row.packets)] },
  { label: "Connections", className: number, cell: (row) => [exact(row.connections)] },
];

const end = (end) => [...owner(end), pod(end), [socket(end.address, end.port), "second mono dim"]];

const dialled = (record) => {
  if (!record.dialled) return [];
  return [[`dialled ${socket(...record.dialled)}`, "second mono dim"]];
};

const why = (record) => {
  const place = `${record.reason}${record.location ? ` in ${record.location}` : ""}`;
  const sure = record.confidence && record.confidence !== "exact" ? [[`${words(record.confidence)}: `, "name"]] : [];
  const said = record.why || "";
  return [...sure, said, [place, said || sure.length ? "second mono dim" : "mono dim"]];
};

export const RECORDS = [
  { label: "Time (UTC)", cell: (row) => [[clock(row.unix_ms), "mono"]] },
  { label: "Cause", cell: (row) => [[words(row.cause), "bad"], [row.direction, "second dim"]] },
  { label: "Policy", cell: (row) => [[row.policies.join(", ") || "–", "name"], [row.policies.length ? words(row.engine) : "", "second dim"]] },
  { label: "From", className: "owner", cell: (row) => end(row.src) },
  { label: "To", className: "owner", cell: (row) => [...end(row.dst), ...dialled(row)] },
  { label: "Packets", className: number, cell: (row) => [exact(row.packets), [row.protocol, "second dim"]] },
  { label: "Why", className: "why", cell: why },
];

export const DESTINATIONS = [
  { label: "To", cell: (row) => owner(row.who) },
  { label: "Address", cell: (row) => [[`${row.protocol} `, "dim"], [socket(row.to, row.port), "mono"]] },
  { label: "From the node's", cell: (row) => [[row.node, "mono"]] },
  { label: "Ports in use", className: number, cell: (row) => [exact(row.in_use)] },
  { label: "Of", className: number, cell: (row) => [exact(row.limit)] },
  { label: "Used", className: number, cell: (row) => [percent(row.limit ? row.in_use / row.limit : 0)] },
];
