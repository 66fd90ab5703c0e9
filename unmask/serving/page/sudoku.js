// The puzzle that is typed in: 81 cells, one of them in the order of focus, the others reached by the arrow keys.

const names = ["row", "column", "box"];

function units(position) {
  const row = Math.floor(position / 9), column = position % 9;
  return [row, column, Math.floor(row / 3) * 3 + Math.floor(column / 3)];
}

// The rows, columns and boxes in which a digit stands twice.
export function brokenUnits(digits) {
  const seen = new Set(), broken = new Set();
  digits.forEach((digit, position) => {
    if (!digit) return;
    units(position).forEach((unit, kind) => {
      const key = `${kind} ${unit} ${digit}`;
      if (seen.has(key)) broken.add(`${names[kind]} ${unit + 1}`);
      seen.add(key);
    });
  });
  return [...broken].sort();
}

export class Board {
  constructor(root, onChange) {
    this.root = root;
    this.onChange = onChange;
    this.cells = Array.from({length: 81}, (_, position) => {
      const input = document.createElement("input");
      const [row, column] = units(position);
      input.type = "text";
      input.inputMode = "numeric";
      input.autocomplete = "off";
      input.maxLength = 1;
      input.tabIndex = position ? -1 : 0;
      input.setAttribute("aria-label", `Row ${row + 1}, column ${column + 1}`);
      return input;
    });
    root.replaceChildren(...this.cells);
    root.addEventListener("keydown", event => this.key(event));
    root.addEventListener("focusin", event => this.focus(this.cells.indexOf(event.target)));
    root.addEventListener("input", event => {
      const digit = /[1-9]/.exec(event.target.value);
      event.target.value = digit ? digit[0] : "";
      this.changed();
    });
    root.addEventListener("paste", event => {
      const text = event.clipboardData.getData("text").replace(/[^\d.]/g, "");
      if (text.length !== 81) return;
      event.preventDefault();
      this.text = text;
      this.onChange();
    });
  }

  get text() {
    return this.cells.map(cell => cell.value || ".").join("");
  }

  set text(puzzle) {
    this.cells.forEach((cell, position) => { cell.value = /[1-9]/.test(puzzle[position]) ? puzzle[position] : ""; });
    this.check();
  }

  get broken() {
    return brokenUnits(this.cells.map(cell => Number(cell.value)));
  }

  check() {
    const digits = this.cells.map(cell => Number(cell.value));
    this.cells.forEach((cell, position) => {
      const mine = units(position);
      const twice = digits[position] && digits.some((digit, other) =>
        other !== position && digit === digits[position] && units(other).some((unit, kind) => unit === mine[kind]));
      if (twice) cell.setAttribute("aria-invalid", "true");
      else cell.removeAttribute("aria-invalid");
    });
  }

  changed() {
    this.check();
    this.onChange();
  }

  focus(position) {
    if (position < 0) return;
    this.cells.forEach((cell, other) => { cell.tabIndex = other === position ? 0 : -1; });
    this.cells[position].select();
  }

  key(event) {
    const at = this.cells.indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = Math.floor(at / 9), column = at % 9;
    const to = {
      ArrowLeft: column > 0 && at - 1, ArrowRight: column < 8 && at + 1, ArrowUp: row > 0 && at - 9,
      ArrowDown: row < 8 && at + 9, Home: row * 9, End: row * 9 + 8,
    }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      if (to !== false) this.cells[to].focus();
    } else if (/^[1-9]$/.test(event.key)) {
      event.preventDefault();
      event.target.value = event.key;
      this.changed();
    } else if (["0", ".", " ", "Delete", "Backspace"].includes(event.key)) {
      event.preventDefault();
      event.target.value = "";
      this.changed();
    }
  }
}
