// The packet's way through the node, drawn: one lane for each thing that NAT does, through the places where the kernel
// does it and where it drops. Lengthwise where there is room, top down where there is not; the numbers are the same.

import { say } from "./dom.js";
import { byteRate, count, exact, nat, packetRate, time, words } from "./format.js";

/** What NAT does, as the lanes stand. */
export const KINDS = ["none", "dnat", "snat", "both"];

/** The places on the way, and the causes of what is dropped at each. */
const PLACES = [
  { name: "DNAT", does: "services", causes: ["conntrack"], rewrites: ["dnat", "both"] },
  { name: "ROUTE", does: "where to", causes: ["route", "rp_filter", "ttl", "mtu"], rewrites: [] },
  { name: "POLICY", does: "who may", causes: ["policy", "firewall", "azure_platform_block"], rewrites: [] },
  { name: "SNAT", does: "egress", causes: ["nat"], rewrites: ["snat", "both"] },
  { name: "EXIT", does: "veth or uplink", causes: ["neighbour", "queue"], rewrites: [] },
];

const draw = (tag, attributes, text) => {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text;
  return element;
};

/** One of the two drawings. `layout` says where things are. */
class Drawing {
  constructor(parent, layout) {
    this.texts = new Map();
    this.lanes = new Map();
    this.downs = new Map();
    const { width, height, className } = layout;
    const id = `passage-${className}`;
    this.svg = draw("svg", {
      viewBox: `0 0 ${width} ${height}`,
      class: `drawing ${className}`,
      role: "img",
      "aria-labelledby": `${id}-title ${id}-desc`,
    });
    this.svg.append(draw("title", { id: `${id}-title` }, "The packet's way through the node"));
    this.description = draw("desc", { id: `${id}-desc` });
    this.svg.append(this.description);
    layout.draw(this);
    parent.append(this.svg);
  }

  box(x, y, width, height, className) {
    this.svg.append(draw("rect", { x, y, width, height, rx: 5, class: className }));
  }

  line(d, className) {
    const path = draw("path", { d, class: className });
    this.svg.append(path);
    return path;
  }

  lane(kind, d) {
    this.lanes.set(kind, this.line(d, `lane ${kind}`));
  }

  dot(kind, x, y) {
    this.svg.append(draw("circle", { cx: x, cy: y, r: 7, class: `dot ${kind}` }));
  }

  /** A text; with a key, it is set later. */
  text(x, y, className, text, key) {
    const element = draw("text", { x, y, class: className }, text);
    this.svg.append(element);
    if (key) this.texts.set(key, element);
  }

  set(key, text) {
    const element = this.texts.get(key);
    if (element) say(element, text);
  }
}

const wide = {
  className: "lengthwise",
  width: 1160,
  height: 338,
  draw(to) {
    const lane = (at) => 108 + at * 46;
    const place = (at) => 330 + at * 124;
    const [top, bottom] = [76, 272];
    to.box(150, top, 92, bottom - top, "end");
    to.text(196, 66, "name middle", "ENTER");
    to.text(196, 34, "note middle", "veth or uplink");
    PLACES.forEach((p, at) => {
      const exit = p.name === "EXIT";
      to.box(place(at) - 46, top, 92, bottom - top, exit ? "end" : "place");
      to.text(place(at), 66, "name middle", p.name);
      to.text(place(at), 34, "note middle", p.does);
      to.downs.set(p.name, to.line(`M${place(at)} ${bottom}v16`, "down"));
      to.text(place(at), 306, "dropped middle", "", `drops-${p.name}`);
      to.text(place(at), 324, "note middle", "", `causes-${p.name}`);
    });
    to.text(196, 306, "rate middle", "", "in-packets");
    to.text(196, 324, "note middle", "", "in-bytes");
    to.text(946, 52, "note right", "packets");
    to.text(1150, 34, "note right", "time from ENTER to EXIT");
    to.text(1042, 52, "note right", "first packet");
    to.text(1150, 52, "note right", "later ones");
    KINDS.forEach((kind, at) => {
      const y = lane(at);
      to.text(138, y + 5, `kind right ${kind}`, nat(kind) === "none" ? "no NAT" : nat(kind));
      to.lane(kind, `M152 ${y}H${place(4) + 44}`);
      PLACES.forEach((p, n) => p.rewrites.includes(kind) && to.dot(kind, place(n), y));
      to.text(946, y, "rate right", "", `packets-${kind}`);
      to.text(946, y + 16, "note right", "", `bytes-${kind}`);
      to.text(1042, y + 5, "time right", "", `first-${kind}`);
      to.text(1150, y + 5, "time right", "", `later-${kind}`);
    });
  },
};

const tall = {
  className: "topdown",
  width: 350,
  height: 478,
  draw(to) {
    const lane = (at) => 128 + at * 62;
    const place = (at) => 96 + at * 54;
    to.text(4, 22, "note", "NAT");
    to.box(88, 34, 258, 32, "end");
    to.text(4, 47, "name", "ENTER");
    to.text(4, 63, "note", "", "in-packets");
    PLACES.forEach((p, at) => {
      to.box(88, place(at) - 8, 258, 32, p.name === "EXIT" ? "end" : "place");
      to.text(4, place(at) + 5, "name", p.name);
      to.text(4, place(at) + 21, "dropped", "", `drops-${p.name}`);
    });
    KINDS.forEach((kind, at) => {
      const x = lane(at);
      const label = { none: "none", dnat: "DNAT", snat: "SNAT", both: "both" }[kind];
      to.text(x, 22, `kind middle ${kind}`, label);
      to.lane(kind, `M${x} 36V${place(4) + 22}`);
      PLACES.forEach((p, n) => p.rewrites.includes(kind) && to.dot(kind, x, place(n) + 8));
      to.text(x, 362, "rate middle", "", `packets-${kind}`);
      to.text(x, 386, "note middle", "", `bytes-${kind}`);
      to.text(x, 424, "time middle", "", `first-${kind}`);
      to.text(x, 462, "time middle", "", `later-${kind}`);
    });
    to.text(4, 362, "note", "packets");
    to.text(4, 386, "note", "bytes");
    to.text(4, 412, "note", "time, first");
    to.text(4, 428, "note", "packet");
    to.text(4, 450, "note", "time, later");
    to.text(4, 466, "note", "packets");
  },
};

/** So many packets of these causes were dropped in the last minute, and what to say of it. */
const dropped = (drops, causes) => {
  const of = drops.causes.filter((drop) => causes.includes(drop.cause));
  const sums = new Map();
  for (const { cause, packets } of of) sums.set(cause, (sums.get(cause) ?? 0) + packets);
  const total = [...sums.values()].reduce((a, b) => a + b, 0);
  return { total, names: [...sums.keys()].map(words).join(", ") };
};

/** How thick a lane is, next to the busiest. */
const thickness = (rate, busiest) => (rate > 0 ? 2 + 14 * Math.sqrt(rate / busiest) : 1);

export class Passage {
  constructor(parent) {
    this.drawings = [new Drawing(parent, wide), new Drawing(parent, tall)];
  }

  show({ totals, nat: costs, drops }) {
    const kinds = new Map(costs.kinds.map((kind) => [kind.nat, kind]));
    const places = PLACES.map((place) => [place, dropped(drops, place.causes)]);
    const busiest = Math.max(...costs.kinds.map((kind) => kind.packets_per_second));
    const description = describe(totals, kinds, places);
    for (const drawing of this.drawings) {
      if (drawing.description.textContent !== description) drawing.description.textContent = description;
      drawing.set("in-packets", packetRate(totals.packets_per_second));
      drawing.set("in-bytes", byteRate(totals.bytes_per_second));
      for (const kind of KINDS) {
        const cost = kinds.get(kind) ?? { packets_per_second: 0, bytes_per_second: 0 };
        const idle = !(cost.packets_per_second > 0);
        drawing.set(`packets-${kind}`, idle ? "0/s" : packetRate(cost.packets_per_second));
        drawing.set(`bytes-${kind}`, byteRate(cost.bytes_per_second));
        drawing.set(`first-${kind}`, time(cost.first?.p50_ns));
        drawing.set(`later-${kind}`, time(cost.established?.p50_ns));
        const lane = drawing.lanes.get(kind);
        lane.setAttribute("stroke-width", thickness(cost.packets_per_second, busiest).toFixed(1));
        lane.setAttribute("class", `lane ${kind}${idle ? " idle" : ""}`);
      }
      for (const [place, { total, names }] of places) {
        const room = drawing.svg.classList.contains("lengthwise");
        drawing.set(`drops-${place.name}`, total ? `▼ ${count(total)}${room ? " dropped" : ""}` : "");
        drawing.set(`causes-${place.name}`, names);
        drawing.downs.get(place.name)?.classList.toggle("nothing", total === 0);
      }
    }
  }
}

const describe = (totals, kinds, places) => {
  const lanes = KINDS.map((kind) => {
    const cost = kinds.get(kind);
    if (!cost?.connections && !cost?.first && !cost?.established) return "";
    const name = kind === "none" ? "Without NAT" : `With ${nat(kind)}`;
    return ` ${name}: ${packetRate(cost.packets_per_second)} packets, first packet ${time(cost.first?.p50_ns)}, later ` +
      `packets ${time(cost.established?.p50_ns)}.`;
  });
  const drops = places
    .filter(([, { total }]) => total > 0)
    .map(([place, { total, names }]) => ` At ${place.name} ${exact(total)} packets were dropped in the last minute: ${names}.`);
  return `${packetRate(totals.packets_per_second)} packets enter.${lanes.join("")}${drops.join("")}`;
};
