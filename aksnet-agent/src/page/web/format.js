// Numbers as people read them: three digits and a unit, as the terminal shows them.

const scaled = (n, units, space) => {
  let unit = 0;
  // 999.5 would be shown as 1000.
  while (n >= 999.5 && unit + 1 < units.length) {
    n /= 1000;
    unit += 1;
  }
  const digits = n < 9.95 && (unit > 0 || n % 1 > 0) ? 1 : 0;
  return n.toFixed(digits) + space + units[unit];
};

const absent = "–";

// Keeps a number and its unit on one line.
const space = "\u00a0";

/** A count: `999`, `1.2k`, `35M`. */
export const count = (n) => (n == null ? absent : scaled(n, ["", "k", "M", "G", "T", "P"], ""));

/** Bytes in powers of 1000. */
export const bytes = (n) => (n == null ? absent : scaled(n, ["B", "kB", "MB", "GB", "TB", "PB"], space));

/** Packets per second. */
export const packetRate = (n) => `${count(n)}/s`;

/** Bytes per second. */
export const byteRate = (n) => `${bytes(n)}/s`;

/** A duration that is given in nanoseconds. */
export const time = (ns) => (ns == null ? absent : scaled(ns, ["ns", "µs", "ms", "s"], space));

/** A difference of durations, with its sign. */
export const overhead = (ns) =>
  ns == null ? absent : `${ns < 0 ? "−" : "+"}${time(Math.abs(ns))}`;

/** An exact number with thin groups of three. */
export const exact = (n) =>
  n == null ? absent : String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");

/** How much of a limit is used. */
export const percent = (ratio) =>
  `${(ratio * 100).toFixed(ratio > 0 && ratio < 0.0995 ? 1 : 0)} %`;

/** The time of day, UTC, of milliseconds since 1970. */
export const clock = (ms) => new Date(ms).toISOString().slice(11, 19);

/** How long ago, in the unit that has one to three digits. */
export const ago = (ms) => {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 60) return `${s} s`;
  return s < 3600 ? `${Math.floor(s / 60)} min` : `${Math.floor(s / 3600)} h`;
};

/** How long, in two units at most. */
export const long = (s) => {
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
};

/** An address with its port, if it has one. */
export const socket = (address, port) => {
  if (!port) return address;
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
};

/** A label's value as words. */
export const words = (name) => name.replaceAll("_", " ");

const NATS = { none: "none", dnat: "DNAT", snat: "SNAT", both: "DNAT + SNAT" };

/** What NAT does. */
export const nat = (name) => NATS[name] ?? name;

/** Whose an end is: namespace and name. */
export const who = (end) => {
  if (end.workload && end.namespace) return `${end.namespace}/${end.workload}`;
  return end.workload || end.namespace || "?";
};
