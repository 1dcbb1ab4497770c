// What is written to the page. Everything that comes from the node goes in as text, never as markup; and only what has
// changed is touched, so that focus, selection and screen readers stay where they are.

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element with a class and a text. */
export const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
};

/** Sets an element's text. */
export const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

const dress = (element, className) => {
  if (element.className !== className) element.className = className;
};

/** Makes an element have exactly so many children. */
const amount = (parent, n, made) => {
  while (parent.childElementCount < n) parent.append(made(parent.childElementCount));
  while (parent.childElementCount > n) parent.lastElementChild.remove();
};

/** Fills an element with parts, each a text or a text and a class: `"x"` or `["x", "dim"]`. */
export const fill = (element, parts) => {
  amount(element, parts.length, () => make("span"));
  let at = element.firstElementChild;
  for (const part of parts) {
    const [text, className] = Array.isArray(part) ? part : [part, ""];
    say(at, text);
    dress(at, className);
    at = at.nextElementSibling;
  }
};

/** Fills a list of terms: `[term, parts, class]` each. */
export const define = (list, entries) => {
  amount(list, entries.length, () => {
    const group = make("div");
    group.append(make("dt"), make("dd"));
    return group;
  });
  entries.forEach(([term, parts, className], at) => {
    const group = list.children[at];
    dress(group, className ?? "");
    say(group.firstElementChild, term);
    fill(group.lastElementChild, parts);
  });
};

/** Fills a list of states, each good or not: `[name, note, good, word]`. */
export const states = (list, entries) => {
  amount(list, entries.length, () => make("li"));
  entries.forEach(([name, note, good, word], at) => {
    fill(list.children[at], [
      [good ? "✓ " : "✗ ", good ? "good" : "bad"],
      [name, "name"],
      [note ? ` ${note}` : "", "dim"],
      [` ${word}`, good ? "dim" : "bad"],
    ]);
  });
};

/** Fills a table's body. A column is `{ cell(row), className }`; the first one heads its row. */
export const rows = (body, columns, data, empty) => {
  if (data.length === 0) {
    if (body.dataset.empty !== empty) {
      const row = make("tr");
      const cell = make("td", "empty", empty);
      cell.colSpan = columns.length;
      row.append(cell);
      body.replaceChildren(row);
      body.dataset.empty = empty;
    }
    return;
  }
  if (body.dataset.empty !== undefined) {
    body.replaceChildren();
    delete body.dataset.empty;
  }
  amount(body, data.length, () => {
    const row = make("tr");
    columns.forEach((column, at) => {
      const cell = make(at === 0 ? "th" : "td", column.className);
      if (at === 0) cell.scope = "row";
      row.append(cell);
    });
    return row;
  });
  let row = body.firstElementChild;
  for (const datum of data) {
    let cell = row.firstElementChild;
    for (const column of columns) {
      fill(cell, column.cell(datum));
      cell = cell.nextElementSibling;
    }
    row = row.nextElementSibling;
  }
};
