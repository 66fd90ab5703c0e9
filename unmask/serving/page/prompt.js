// The prompt as a text box: gaps are written `[MASK:n]`, and a selection becomes one.

const GAP = /\[MASK(?::(\d+))?\]/g;

export const hasGaps = text => text.search(GAP) >= 0;

// A canvas as it will begin, as far as one can tell without the model's tokenizer.
export function preview(text, length) {
  const tokens = [];
  const mask = count => { for (let n = 0; n < Math.min(count, 4096); n += 1) tokens.push({id: null, text: null}); };
  let from = 0;
  for (const gap of text.matchAll(GAP)) {
    if (gap.index > from) tokens.push({id: 0, text: text.slice(from, gap.index)});
    mask(Number(gap[1] ?? 1));
    from = gap.index + gap[0].length;
  }
  if (from < text.length) tokens.push({id: 0, text: text.slice(from)});
  if (from === 0) mask(length);
  return tokens;
}

// How many tokens a piece of text has, gaps counted by their numbers.
function size(text, charactersPerToken) {
  let gaps = 0;
  const rest = text.replace(GAP, (_, count) => { gaps += Number(count ?? 1); return ""; });
  return Math.max(1, gaps + Math.round(rest.length / charactersPerToken));
}

export class Prompt {
  constructor(box, button, number, unit, onChange) {
    [this.box, this.button, this.number, this.unit] = [box, button, number, unit];
    this.charactersPerToken = 1;
    button.disabled = true;
    for (const name of ["select", "input", "focus"]) box.addEventListener(name, () => this.selected());
    document.addEventListener("selectionchange", () => { if (document.activeElement === box) this.selected(); });
    number.addEventListener("input", () => this.plural());
    button.addEventListener("click", () => { this.mask(); onChange(); });
    box.addEventListener("input", onChange);
  }

  get selection() {
    return this.box.value.slice(this.box.selectionStart, this.box.selectionEnd);
  }

  selected() {
    const text = this.selection;
    this.button.disabled = text === "";
    if (text !== "") this.number.value = String(size(text, this.charactersPerToken));
    this.plural();
  }

  plural() {
    this.unit.textContent = this.number.value === "1" ? "token" : "tokens";
  }

  mask() {
    const {box} = this, from = box.selectionStart, count = Math.max(1, Math.round(Number(this.number.value) || 1));
    const gap = `[MASK:${count}]`;
    box.focus();
    // The only way that keeps the text box's own undo.
    if (!document.execCommand("insertText", false, gap)) box.setRangeText(gap);
    box.setSelectionRange(from + gap.length, from + gap.length);
    this.selected();
  }
}
