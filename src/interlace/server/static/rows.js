// One group on the page: a column for each row, the votes above them, and who listens to whom.
import { drawArcs, drawHeat, weightsAt } from "./listening.js";

const KINDS = 8;
const kinds = new Map(); // one colour for an answer, in all groups
export const forgetColours = () => kinds.clear();
function kindOf(answer) {
  if (!kinds.has(answer)) kinds.set(answer, kinds.size % KINDS);
  return `kind-${kinds.get(answer)}`;
}
const READS = { // by what the blocks read of siblings
  position: "at every step each row reads what its siblings feed",
  finished: "each row reads what its siblings feed, and all that those wrote which have ended",
  history: "each row reads all that its siblings have written so far",
};
const TITLES = {
  together: ["Together", ""],
  alone: ["Alone", "The same weights and the same random numbers, but no row reads another."],
};

function make(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text; // never markup: it may be the model's
  return made;
}

export class Group {
  constructor(mode, width, reads) {
    this.mode = mode;
    this.width = width;
    this.pieces = Array.from({ length: width }, () => []); // text of each step, by row
    this.reasons = Array(width).fill(null);
    this.attention = null;
    this.verdicts = null;
    this.only = null; // the row whose arcs alone are shown
    this.section = make("section", "group");
    this.section.setAttribute("aria-label", TITLES[mode][0]);
    this.votes = make("div", "votes");
    this.votes.setAttribute("role", "img");
    this.arcs = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.arcs.setAttribute("class", "arcs");
    this.arcs.setAttribute("aria-hidden", "true"); // the heat map says the same in words
    this.heat = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.heat.setAttribute("class", "heat");
    this.heat.setAttribute("role", "img");
    this.rows = make("div", "rows");
    this.columns = Array.from({ length: width }, (_, row) => this.column(row));
    this.rows.append(...this.columns.map((column) => column.article));
    const [title, alone] = TITLES[mode];
    const what = alone || `One group: ${READS[reads] ?? "no row can read another"}.`;
    const words = make("div", "words"), head = make("div", "head");
    words.append(make("h2", "", title), make("p", "", what), this.votes);
    head.append(words, this.heat);
    const across = make("div", "across"); // arcs move with their rows where these are scrolled
    across.style.setProperty("--columns", width);
    across.append(this.arcs, this.rows);
    this.section.append(head, across);
  }

  column(row) {
    const article = make("article", "row");
    article.id = `${this.mode}-${row + 1}`;
    article.tabIndex = 0;
    const head = make("h3"), text = make("pre"), note = make("p");
    head.append(make("span", "", `row ${row + 1}`), make("span", "chip kind-none", ""));
    article.append(head, text, note);
    const show = (only) => () => { this.only = only; this.redraw?.(); };
    for (const [event, only] of [["mouseenter", row], ["focusin", row], ["mouseleave", null], ["focusout", null]])
      article.addEventListener(event, show(only));
    return { article, text, note, chip: head.lastChild };
  }

  get steps() { return Math.max(0, ...this.pieces.map((row) => row.length)); }

  take(row, text, reason) {
    this.pieces[row].push(text);
    if (reason) this.reasons[row] = reason;
  }

  // Everything as it was after `step` steps.
  show(step, layer) {
    this.redraw = () => this.listen(step, layer);
    const rights = this.rights(step);
    this.columns.forEach((column, row) => {
      const pieces = this.pieces[row].slice(0, step);
      const verdict = this.verdicts?.rows[row];
      const ended = this.reasons[row] !== null && this.pieces[row].length <= step;
      column.article.classList.toggle("finished", ended);
      this.write(column.text, pieces, rights.has(row) ? verdict : null);
      const known = verdict && verdict.answer !== null && (step >= this.steps || rights.has(row));
      const kind = known ? kindOf(verdict.answer) : "kind-none";
      column.article.className = `row kind ${kind}${ended ? " finished" : ""}`;
      column.chip.className = `chip ${kind}`;
      column.chip.textContent = known ? verdict.answer : "";
      column.chip.title = column.chip.textContent;
      this.remark(column.note, row, rights, known ? verdict : null);
    });
    this.vote(step);
    this.listen(step, layer);
  }

  // Rows that are right by then, with the step that made them so.
  rights(step) {
    const found = new Map();
    this.verdicts?.rows.forEach((verdict, row) => {
      if (verdict.since !== null && verdict.since < step) found.set(row, verdict.since);
    });
    return found;
  }

  write(place, pieces, hit) {
    if (hit === null) { place.textContent = pieces.join(""); return; }
    const { start, since } = hit;
    const mark = make("mark", "", pieces.slice(start, since + 1).join(""));
    mark.title = `right since step ${since + 1}`;
    place.replaceChildren(pieces.slice(0, start).join(""), mark, pieces.slice(since + 1).join(""));
  }

  remark(place, row, rights, verdict) {
    place.replaceChildren();
    if (rights.has(row)) {
      const since = rights.get(row), source = this.source(row, since);
      const what = source === null ? `found at step ${since + 1}` : `step ${since + 1}, after `;
      place.append(make("span", "right", `✓ ${what}`));
      if (source !== null) {
        const link = make("a", "", `row ${source + 1}`);
        link.href = `#${this.mode}-${source + 1}`;
        link.title = "It had the same answer before, where this row could read it";
        link.addEventListener("click", (event) => { // the address keeps the settings
          event.preventDefault();
          this.columns[source].article.focus();
        });
        place.append(link);
      }
    } else if (verdict?.correct === false) place.append(make("span", "wrong", "✗ not right"));
  }

  // The sibling that had the same answer before; alone, a row takes nothing over.
  source(row, since) {
    if (this.mode === "alone") return null;
    const rows = this.verdicts.rows;
    let best = null;
    rows.forEach((other, index) => {
      if (other.since === null || other.since >= since || other.answer !== rows[row].answer) return;
      if (best === null || other.since < rows[best].since) best = index;
    });
    return best;
  }

  vote(step) {
    const counts = new Map();
    const partial = step < this.steps;
    this.verdicts?.rows.forEach((verdict, row) => {
      const is = partial ? verdict.since !== null && verdict.since < step : verdict.answer !== null;
      if (!is) return;
      const known = counts.get(verdict.answer) ?? { count: 0, correct: verdict.correct };
      known.count += 1;
      counts.set(verdict.answer, known);
    });
    const sorted = [...counts].sort((a, b) => b[1].count - a[1].count);
    const silent = this.width - sorted.reduce((sum, [, one]) => sum + one.count, 0);
    const parts = sorted.map(([answer, one]) => {
      const right = one.correct === null ? "" : one.correct ? " ✓" : " ✗";
      const part = make("span", `chip ${kindOf(answer)}`, `${answer}: ${one.count}${right}`);
      part.style.flexGrow = one.count;
      part.title = part.textContent;
      return part;
    });
    if (silent > 0) {
      const part = make("span", "chip kind-none", silent === this.width ? "no answers yet" : `none: ${silent}`);
      part.style.flexGrow = silent;
      parts.push(part);
    }
    for (const part of parts) part.style.flexBasis = "0";
    this.votes.replaceChildren(...parts);
    this.votes.setAttribute("aria-label", `Votes: ${parts.map((part) => part.textContent).join(", ")}`);
  }

  listen(step, layer) {
    // What was fed as token t gave token t + 1; the first tokens come from the prompt alone.
    const weights = weightsAt(this.attention, step - 2, layer);
    const isHidden = !this.attention?.length || this.width < 2; // some kinds have no weights
    for (const picture of [this.arcs, this.heat]) picture.toggleAttribute("hidden", isHidden);
    const none = Array.from({ length: this.width }, () => Array(this.width).fill(0));
    drawArcs(this.arcs, weights ?? none, this.only);
    drawHeat(this.heat, weights ?? none);
  }

  toJSON() {
    const { mode, width, pieces, reasons, attention, verdicts } = this;
    return { mode, width, texts: pieces.map((row) => row.join("")), pieces, reasons, attention, verdicts };
  }
}
