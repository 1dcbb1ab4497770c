// A table: columns that can order it, rows of one page, and the buttons to turn pages. The agent orders and chooses; the
// table asks for no more than it shows.

import { make, rows, say } from "./dom.js";
import { exact } from "./format.js";

/**
 * A table without order or pages. A column is `{ label, note, className, cell(row), sort }`; `sort` names the order that
 * its header asks for.
 */
export class Table {
  constructor(table, columns, empty) {
    this.columns = columns;
    this.empty = empty;
    this.body = table.tBodies[0];
    this.heads = new Map();
    const row = make("tr");
    for (const column of columns) {
      const head = make("th", column.className);
      head.scope = "col";
      if (column.note) head.title = column.note;
      if (column.sort) this.#sortable(head, column);
      else head.textContent = column.label;
      row.append(head);
    }
    table.tHead.append(row);
    /** What to do when an order is asked for. */
    this.onsort = () => {};
  }

  #sortable(head, column) {
    const button = make("button", "sort");
    button.type = "button";
    const mark = make("span", "mark");
    mark.ariaHidden = "true";
    button.append(make("span", "", column.label), mark);
    button.addEventListener("click", () => this.onsort(column.sort));
    head.append(button);
    this.heads.set(column.sort, [head, mark]);
  }

  /** Shows what orders the rows: greatest first, unless reversed. */
  order(sort, reverse) {
    for (const [name, [head, mark]] of this.heads) {
      const ordered = name === sort;
      const way = reverse ? "ascending" : "descending";
      if (ordered) head.ariaSort = way;
      else head.removeAttribute("aria-sort");
      say(mark, ordered ? (reverse ? "▲" : "▼") : "");
    }
  }

  show(data) {
    rows(this.body, this.columns, data, this.empty);
  }
}

/** Turns the pages of a table. */
export class Pager {
  constructor(element, table, things, size) {
    this.table = table;
    this.things = things;
    this.size = size;
    this.page = 0;
    this.shown = make("p", "shown");
    this.back = make("button", "", "Previous");
    this.on = make("button", "", "Next");
    for (const button of [this.back, this.on]) {
      button.type = "button";
      button.append(make("span", "hidden", ` ${things}`));
    }
    this.back.addEventListener("click", () => this.#turn(-1));
    this.on.addEventListener("click", () => this.#turn(1));
    element.append(this.shown, this.back, this.on);
    /** What to do when another page is wanted. */
    this.onturn = () => {};
  }

  #turn(by) {
    if ((by < 0 ? this.back : this.on).ariaDisabled === "true") return;
    this.page += by;
    this.onturn();
  }

  /** How many rows have to be asked for. */
  get wanted() {
    return (this.page + 1) * this.size;
  }

  /** Shows the page's part of `data`, of which there are `all`. At most `most` can be asked for. */
  show(data, all, most) {
    const reachable = Math.min(all, most);
    const last = Math.max(0, Math.ceil(reachable / this.size) - 1);
    this.page = Math.min(this.page, last);
    const from = this.page * this.size;
    const part = data.slice(from, from + this.size);
    // Another page's rows have not come yet: what is shown stays for as long.
    if (part.length > 0 || all <= from) this.table.show(part);
    const range = all > this.size ? `${exact(from + 1)}–${exact(from + part.length)} of ` : "";
    say(this.shown, `${range}${exact(all)} ${this.things}`);
    // Not `disabled`: the button that was pressed keeps the focus.
    this.back.ariaDisabled = String(this.page === 0);
    this.on.ariaDisabled = String(this.page >= last);
    const one = last === 0;
    if (this.back.hidden !== one) this.back.hidden = this.on.hidden = one;
  }
}
