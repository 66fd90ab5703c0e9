// The rule and its settings, as the server lists them.

const FIRST = ["auto", "entropy-bound", "noisy-bound", "threshold", "topk", "left-to-right"];

// Sliders for settings whose sensible values are known; their places are even steps for the hand.
const SLIDERS = {
  gamma: [0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5],
  epsilon: [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 1.5, 2, 3, 5, 10],
  threshold: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1],
  loss: [0, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1],
  k: [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32],
  steps: [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64],
};

// What to begin with, where a rule leaves the choice to its user.
const USUAL = {gamma: 0.1, threshold: 0.9};

const NAMES = {gamma: "γ, in nats", epsilon: "ε, in nats", alpha: "α", beta: "β", eta: "η", delta: "δ"};

export function fillRules(select, rules) {
  const first = FIRST.map(name => rules.find(rule => rule.name === name)).filter(Boolean);
  const others = rules.filter(rule => !first.includes(rule));
  const group = (label, list) => {
    const node = document.createElement("optgroup");
    node.label = label;
    node.append(...list.map(rule => new Option(rule.name, rule.name)));
    return node;
  };
  select.replaceChildren(group("Common", first), group("All others", others));
}

export class Settings {
  constructor(root) {
    this.root = root;
    this.fields = [];
  }

  show(rule) {
    this.rule = rule;
    const asked = Object.entries(rule.settings).filter(([, setting]) => !setting.own);  // the server knows the others
    this.fields = asked.map(([name, setting]) => field(name, setting));
    this.root.replaceChildren(...this.fields.map(one => one.node));
  }

  // A profile is measured on a model.
  suit(model) {
    const profile = this.fields.find(one => one.name === "profile");
    if (profile) profile.input.value = model.id;
  }

  // `name:key=value,key=value`, as the server reads rules.
  get text() {
    const told = this.fields.filter(one => one.value !== "").map(one => `${one.name}=${one.value}`);
    return told.length ? `${this.rule.name}:${told.join(",")}` : this.rule.name;
  }

  // The same without what is as usual, to be read.
  get brief() {
    const told = this.fields.filter(one => one.value !== one.usual).map(one => `${one.name}=${one.value}`);
    return told.length ? `${this.rule.name}:${told.join(",")}` : this.rule.name;
  }

  // The field of the setting that a message names.
  named(message) {
    return this.fields.find(one => message.split(/\W+/).includes(one.name))?.input;
  }

  // What one token at a time in the same order is called.
  baseline(known) {
    const proxy = this.fields.find(one => one.name === "proxy")?.value ?? "entropy";
    const name = proxy === "uniform" ? "uniform" : `top1-${proxy}`;
    return known.some(rule => rule.name === name) ? name : "top1-entropy";
  }
}

function field(name, setting) {
  const node = document.createElement("div"), label = document.createElement("label");
  const id = `setting-${name}`, given = setting.default ?? USUAL[name] ?? setting.example ?? "";
  label.htmlFor = id;
  label.textContent = NAMES[name] ?? name.replace(/_/g, " ");
  const input = setting.choices?.length ? choice(setting.choices) : entry(setting);
  input.id = id;
  input.value = given;
  node.className = "field";
  const marks = setting.choices?.length ? null : SLIDERS[name];
  if (marks) {
    node.classList.add("slid");
    node.append(label, slider(marks, input, label.textContent), input);
  } else {
    node.classList.add("inline");
    node.append(label, input);
  }
  // A number is always worth reading; a choice only if it is another one than usual.
  const usual = setting.choices?.length ? String(given) : null;
  return {name, input, node, usual, get value() { return input.value.trim(); }};
}

function choice(options) {
  const select = document.createElement("select");
  select.append(...options.map(option => new Option(option, option)));
  return select;
}

function entry(setting) {
  const input = document.createElement("input");
  const numeric = setting.type !== "str";
  input.type = numeric ? "number" : "text";
  if (numeric) {
    input.step = setting.type === "int" ? "1" : "any";
    input.inputMode = "decimal";
  }
  input.autocomplete = "off";
  return input;
}

// A slider and a number that follow each other; the number may lie between the slider's places.
function slider(marks, number, label) {
  const range = document.createElement("input");
  range.type = "range";
  range.min = "0";
  range.max = String(marks.length - 1);
  range.step = "1";
  range.setAttribute("aria-label", `${label}, by slider`);
  const follow = () => {
    const value = Number(number.value);
    const distances = marks.map(mark => Math.abs(mark - value));
    range.value = String(distances.indexOf(Math.min(...distances)));
    range.setAttribute("aria-valuetext", number.value);
  };
  range.addEventListener("input", () => {
    number.value = String(marks[Number(range.value)]);
    range.setAttribute("aria-valuetext", number.value);
  });
  number.addEventListener("input", follow);
  queueMicrotask(follow);
  return range;
}
