// One run on the page: its numbers, and its canvas, whose cells can be visited by keyboard.

import {paint} from "./colours.js";
import {brokenUnits} from "./sudoku.js";
import {seconds} from "./words.js";

const SIGNS = {"\n": "↵", "\r": "␍", "\t": "⇥"};
// Names of special tokens; in other brackets there may be an atom.
const SPECIAL = /^(?:<\|(\S+)\|>|<(\/?s|pad|unk|mask|bos|eos)>|\[(CLS|SEP|PAD|UNK|MASK|BOS|EOS)\])$/;
const ENDS = /^(endoftext|end_of_text|eot_id|im_end|eos|\/s|sep)$/i;

// How a token is shown: with a sign where nothing would be seen, and special tokens by their name alone.
function visible(text) {
  const special = SPECIAL.exec(text)?.slice(1).find(Boolean);
  if (special) return {text: ENDS.test(special) ? "end" : special.toLowerCase(), special: true};
  return {text: text.replace(/[\n\r\t]/g, sign => SIGNS[sign]) || "∅", special: false};
}

const spoken = text => ({" ": "space", "\n": "line break", "\t": "tab"}[text] ?? (text || "no text"));

const HINT = "A token’s probability and entropy are shown here: point at one, tap it, or use the arrow keys.";

export class Panel {
  constructor(title, number) {
    const root = document.getElementById("panel").content.cloneNode(true).firstElementChild;
    this.root = root;
    this.title = title;
    this.number = number;
    for (const name of ["canvas", "nfe", "seconds", "written", "detail", "text", "copy"]) {
      this[name] = root.querySelector(`.${name}`);
    }
    this.bar = root.querySelector(".progress div");
    root.querySelector("h2").textContent = title;
    root.setAttribute("aria-label", title);
    this.canvas.setAttribute("aria-label", `Tokens, ${title}. Arrow keys move from token to token.`);
    this.run = null;
    this.active = -1;
    this.pointed = -1;
    this.marked = null;
    this.evaluation = 0;
    this.canvas.addEventListener("keydown", event => this.key(event));
    this.canvas.addEventListener("pointerover", event => this.point(event.target.closest(".cell")));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("focus", () => this.activate(Math.max(0, this.active)));
    this.canvas.addEventListener("blur", () => this.mark(null));
    this.canvas.addEventListener("click", event => {
      const cell = event.target.closest(".cell");
      if (cell) this.activate(this.cells.indexOf(cell));
    });
    this.copy.addEventListener("click", () => this.copied());
  }

  // Blocks of masks are about as wide as tokens are, up to a limit, so that little moves when they are written.
  begin(run, isBoard, charactersPerToken) {
    this.run = run;
    this.canvas.style.setProperty("--block", `${Math.min(4, charactersPerToken)}ch`);
    this.isBoard = isBoard;
    this.canvas.classList.toggle("grid", isBoard);
    this.cells = run.initial.map((token, position) => {
      const cell = document.createElement("span");
      cell.id = `cell-${this.number}-${position}`;
      cell.setAttribute("role", "option");
      cell.setAttribute("aria-selected", "false");
      return cell;
    });
    this.keys = this.cells.map(() => "");
    this.canvas.replaceChildren(...this.cells);
  }

  // Shows the canvas as it stood after an evaluation.
  show(evaluation, look) {
    if (this.run === null) return;
    const {run} = this, now = run.at(evaluation);
    this.evaluation = now.evaluation;
    this.over = now.over;
    this.nfe.textContent = now.evaluation;
    this.seconds.textContent = seconds(now.seconds);
    this.written.textContent = `${now.written} of ${run.masks}`;
    const done = now.over && run.end.finish_reason !== "stopped" ? 1 : now.written / Math.max(1, run.masks);
    this.bar.style.width = `${100 * done}%`;
    this.root.classList.toggle("over", now.over);
    this.cells.forEach((node, position) => {
      const cell = run.cell(position, now.evaluation), fresh = cell.fresh && evaluation <= run.evaluations;
      const key = JSON.stringify([cell.state, cell.text, cell.evaluation, fresh, cell.erased, now.over, look]);
      if (this.keys[position] === key) return;
      this.keys[position] = key;
      this.draw(node, cell, fresh, look);
    });
    this.describe();
  }

  draw(node, cell, fresh, look) {
    const classes = ["cell", cell.state];
    let shown = "";
    if (cell.state === "masked") {
      if (cell.erased) classes.push("erased");
      if (this.over) classes.push("left");
      node.setAttribute("aria-label", "masked");
    } else {
      const sign = visible(cell.text);
      shown = sign.text;
      if (sign.special) classes.push("special");
      if (cell.text.endsWith("\n")) classes.push("breaks");
      if (fresh) classes.push("fresh");
      if (shown.trim() === "") node.setAttribute("aria-label", spoken(cell.text));
      else node.removeAttribute("aria-label");
    }
    node.className = classes.join(" ");
    node.textContent = shown;
    const written = cell.state === "written";
    const {fill, ink} = written ? paint(cell, look.colour, look.theme, look.masks) : {fill: null, ink: null};
    node.style.setProperty("background-color", fill);
    node.style.setProperty("color", ink);
  }

  remark() {
    const reason = this.run.end.finish_reason;
    if (reason === "stopped") return "Stopped before the end.";
    if (!this.isBoard) return "";
    const digits = this.run.initial.map((_, at) => Number(this.run.cell(at, Infinity).text ?? 0));
    const broken = brokenUnits(digits);
    if (broken.length) return `Not a solution: a digit is twice in ${broken.join(", ")}.`;
    return digits.includes(0) ? "" : "Solved: every row, column and box has each digit once.";
  }

  get plain() {
    return this.run.initial.map((_, position) => {
      const cell = this.run.cell(position, this.evaluation);
      return cell.state === "masked" ? "▮" : cell.text;
    }).join("");
  }

  // Speaks for the whole canvas once the run is over.
  tell(text) {
    this.text.textContent = text;
    this.copy.hidden = false;
    this.result = text;
  }

  async copied() {
    let message = "Copied";
    try { await navigator.clipboard.writeText(this.result); } catch { message = "Not allowed"; }
    this.copy.textContent = message;
    setTimeout(() => { this.copy.textContent = "Copy text"; }, 1500);
  }

  key(event) {
    if (this.run === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const down = this.isBoard ? 9 : this.below(1) - this.active, up = this.isBoard ? -9 : this.below(-1) - this.active;
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: up, ArrowDown: down, Home: -this.active,
      End: this.cells.length - 1 - this.active}[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const to = this.active + step;
    if (to >= 0 && to < this.cells.length) this.activate(to);
  }

  // The cell under or over the active one, where lines of text wrap.
  below(direction) {
    const from = this.cells[this.active]?.getBoundingClientRect();
    if (!from) return this.active;
    let best = this.active, nearest = Infinity, line = null;
    for (let at = this.active; at >= 0 && at < this.cells.length; at += direction) {
      const box = this.cells[at].getBoundingClientRect();
      if (Math.abs(box.top - from.top) < from.height / 2) continue;
      line ??= box.top;
      if (Math.abs(box.top - line) > from.height / 2) break;
      const distance = Math.abs(box.left - from.left);
      if (distance < nearest) [nearest, best] = [distance, at];
    }
    return best;
  }

  activate(position) {
    if (this.run === null) return;
    this.active = position;
    this.mark(this.cells[position]);
    this.canvas.setAttribute("aria-activedescendant", this.cells[position].id);
    this.cells[position].setAttribute("aria-label", this.sentence(position));
    this.cells[position].scrollIntoView({block: "nearest"});
    this.describe();
  }

  mark(cell) {
    this.marked?.setAttribute("aria-selected", "false");
    this.marked = cell;
    cell?.setAttribute("aria-selected", "true");
    if (cell === null) this.describe();
  }

  point(cell) {
    this.pointed = cell ? this.cells.indexOf(cell) : -1;
    this.describe();
  }

  describe() {
    const focused = document.activeElement === this.canvas ? this.active : -1;
    const position = this.pointed >= 0 ? this.pointed : focused;
    const remark = position < 0 && this.over ? this.remark() : "";
    this.detail.classList.toggle("remark", remark !== "");
    this.detail.textContent = position >= 0 && this.run ? this.sentence(position) : remark || HINT;
  }

  sentence(position) {
    const cell = this.run.cell(position, this.evaluation);
    const grid = `row ${Math.floor(position / 9) + 1}, column ${position % 9 + 1}`;
    const place = this.isBoard ? grid : `position ${position + 1}`;
    if (cell.state === "masked") return `${place}: masked`;
    const sign = visible(cell.text), text = sign.special ? sign.text : spoken(cell.text);
    if (cell.state === "given") return `${place}: ${text}, given`;
    const chance = cell.probability > 0.9995 ? "> 0.999" : cell.probability.toFixed(3);
    const marginal = `probability ${chance}, entropy ${cell.entropy.toFixed(2)} nats`;
    return `${place}: ${text}, evaluation ${cell.evaluation}, ${marginal}`;
  }
}
