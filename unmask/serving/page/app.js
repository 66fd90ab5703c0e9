// The page: what is asked, the runs that answer, and the place on the way that is shown.

import {getList, ServerError, unmask} from "./api.js";
import {onTheme, theme} from "./appearance.js";
import {about, gradient, ticks} from "./colours.js";
import {examples, help, things} from "./examples.js";
import {Panel} from "./panel.js";
import {Player} from "./player.js";
import {hasGaps, preview, Prompt} from "./prompt.js";
import {reached, Run} from "./run.js";
import {fillRules, Settings} from "./rules.js";
import {Board} from "./sudoku.js";
import {place, progress, sentence, summary} from "./words.js";

const $ = id => document.getElementById(id);
const SPEAK_EVERY = 2500;

const settings = new Settings($("settings"));
const board = new Board($("board"), () => { checkBoard(); changed(); });
const prompt = new Prompt($("prompt"), $("mask-selection"), $("mask-size"), $("mask-unit"), () => changed());
const player = new Player(() => drawSoon());

let models = [], rules = [], panels = [], runs = [], controller = null, begun = false, spoke = 0, drawing = false;
const learned = {};

const model = () => models.find(one => one.id === $("model").value);
const kind = () => model().unmask.kind;
const onBoard = () => kind() === "sudoku";
const asChat = () => model().unmask.chat === true && $("chat").checked;
const number = id => $(id).value.trim() === "" ? null : Number($(id).value);
const key = () => $("key").value;

// Colours

const colour = () => document.querySelector("[name=colour]:checked").value;
const known = () => runs.filter(Boolean);
const masks = () => Math.max(2, ...known().map(run => run.masks));

function legend() {
  $("ramp").style.background = gradient(colour(), theme());
  $("ticks").replaceChildren(...ticks(colour(), masks()).map(([share, label]) => {
    const tick = document.createElement("span");
    tick.textContent = label;
    tick.style.left = `${100 * share}%`;
    return tick;
  }));
  $("legend-text").textContent = about(colour());
  $("ramp").parentElement.title = about(colour());
}

for (const radio of document.querySelectorAll("[name=colour]")) {
  radio.addEventListener("change", () => { legend(); drawSoon(); });
}

// What is asked

function chooseModel() {
  const board = onBoard();
  $("text-input").hidden = board;
  $("board-input").hidden = !board;
  $("length-field").hidden = $("block-field").hidden = board;
  $("chat-field").hidden = model().unmask.chat !== true;
  const shown = examples(kind());
  $("prompt-help").textContent = help(kind());
  const own = new Option("your own", "");
  own.hidden = true;
  $("examples").replaceChildren(...shown.map(([name, text]) => new Option(name, text)), own);
  $("length").value = String(Math.min(64, Math.floor(0.4 * (model().unmask.max_length ?? 160))));
  prompt.charactersPerToken = charactersPerToken();
  settings.suit(model());
  useExample();
}

function useExample() {
  if (onBoard()) board.text = $("examples").value;
  else $("prompt").value = $("examples").value;
  checkBoard();
  prompt.selected();
  restart();
}

function changed() {
  $("examples").value = "";
  restart();
}

// What is shown is another text's from here on, but not in the middle of a run.
function restart() {
  begun &&= controller !== null;
  idle();
}

function checkBoard() {
  const {broken} = board;
  $("board-problem").textContent = broken.length ? `A digit is twice in ${broken.join(", ")}.` : "";
}

function chooseRule() {
  const rule = rules.find(one => one.name === $("rule").value);
  $("rule-about").textContent = rule.summary;
  settings.show(rule);
  settings.suit(model());
  brief();
}

function brief() {
  $("brief").textContent = settings.brief;
  idle();
}

function showLength() {
  const gaps = !onBoard() && hasGaps($("prompt").value);
  $("length-field").classList.toggle("moot", gaps);
  $("block-field").classList.toggle("moot", gaps);
  $("chat-field").classList.toggle("moot", gaps);
  $("length").disabled = $("block").disabled = $("chat").disabled = gaps;
  $("length-help").hidden = !gaps;
}

function question(rule) {
  const body = {model: $("model").value, rule, temperature: number("temperature"), seed: number("seed")};
  const text = onBoard() ? board.text : $("prompt").value;
  if (onBoard() || hasGaps(text)) body.text = text;
  else {
    if (asChat()) body.messages = [{role: "user", content: text}];
    else body.prompt = text;
    Object.assign(body, {max_tokens: number("length"), block_length: number("block")});
  }
  return Object.fromEntries(Object.entries(body).filter(([, value]) => value !== null));
}

// The canvas before a run: what is given, and the masks.

function idle() {
  showLength();
  if (begun || controller) return;
  const text = onBoard() ? board.text : $("prompt").value;
  const tokens = onBoard()
    ? [...text].map(sign => sign === "." ? {id: null, text: null} : {id: Number(sign), text: sign})
    : preview(text, Math.min(4096, number("length") ?? 0));
  const titles = [settings.brief, ...$("compare").checked ? ["one at a time"] : []];
  show(titles.map(() => new Run({rule: "", prompt_length: 0, tokens})), titles);
  player.reset();
  verdict(["Press Unmask: each evaluation of the model writes the tokens that the rule lets it."]);
  drawSoon();
}

function show(shown, titles) {
  runs = shown;
  panels = titles.map((title, index) => new Panel(title, index));
  $("runs").replaceChildren(...panels.map(panel => panel.root));
  $("runs").classList.toggle("two", panels.length > 1);
  panels.forEach((panel, index) => {
    if (runs[index]) panel.begin(runs[index], onBoard(), prompt.charactersPerToken);
  });
  legend();
}

// Runs

$("composer").addEventListener("submit", event => {
  event.preventDefault();
  if (controller) stop();
  else start();
});

$("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});

document.addEventListener("keydown", event => {
  if (event.key === "Escape" && controller) stop();
});

function stop() {
  controller.abort(new DOMException("stopped", "AbortError"));
}

async function start() {
  clearError();
  if ($("seed").value.trim() === "") newSeed();
  const asked = [settings.text], titles = [settings.brief];
  if ($("compare").checked) {
    asked.push(settings.baseline(rules));
    titles.push(`one at a time (${asked[1]})`);
  }
  const own = new AbortController();
  controller = own;
  begun = true;
  busy(true);
  show(titles.map(() => null), titles);
  player.reset();
  verdict(["Waiting for the model …"]);
  speak("Running.", true);
  const results = await Promise.allSettled(asked.map((rule, index) => follow(question(rule), index, own)));
  const failed = results.find(result => result.status === "rejected" && result.reason.name !== "AbortError");
  const stopped = !failed && own.signal.aborted;
  for (const run of known()) if (!run.end) run.stop();
  controller = null;
  busy(false);
  player.end(reached(known()));
  panels.forEach((panel, index) => { if (runs[index]) panel.tell(runs[index].end.text || panel.plain); });
  if (!known().some(run => run.steps.length)) {
    begun = false;
    idle();
  }
  if (failed) showError(failed.reason);
  else if (stopped) speak("Stopped.", true);
  else speak(summary(runs, onBoard() ? panels[0].remark() : `Text: ${runs[0].end.text}`), true);
}

async function follow(body, index, own) {
  try {
    for await (const event of unmask(body, key(), own.signal)) {
      if (event.type === "start") {
        runs[index] = new Run(event);
        if (index === 0 && event.says) $("rule-about").textContent = `${event.says[0].toUpperCase()}${event.says.slice(1)}.`;
        learn(event.tokens);
        panels[index].begin(runs[index], onBoard(), prompt.charactersPerToken);
        if (player.ended) player.begin(masks());
        legend();
        if (runs.every(Boolean)) bringIntoView();
      } else if (event.type === "step") {
        runs[index].add(event);
        player.grow(reached(runs));
        speakProgress();
      } else if (event.type === "end") {
        runs[index].finish(event);
        player.grow(reached(runs));
      } else if (event.type === "error") {
        throw new ServerError(event.message);
      }
    }
  } catch (error) {
    if (!own.signal.aborted) own.abort(error);
    throw error;
  }
}

// Where the canvas is below what is asked, and not beside it; once the page is as long as it will be.
function bringIntoView() {
  if (!matchMedia("(max-width: 1020px)").matches) return;
  $("verdict").scrollIntoView({behavior: player.calm.matches ? "auto" : "smooth", block: "start"});
}

// For the size of gaps: as prompts have shown, or before that, by whether the vocabulary has room for words.
function charactersPerToken() {
  const {id, unmask: {vocab_size: vocabulary}} = model();
  return learned[id] ?? (vocabulary > 2000 ? 4 : 1);
}

function learn(tokens) {
  const texts = tokens.map(token => token.text).filter(text => text && !/^[<[].*[>\]]$/.test(text));
  if (texts.length) learned[model().id] = Math.max(1, texts.join("").length / texts.length);
  prompt.charactersPerToken = charactersPerToken();
}

function newSeed() {
  $("seed").value = String(Math.floor(Math.random() * 1e6));
}

function busy(running) {
  $("run").textContent = running ? "Stop" : "Unmask";
  $("run").classList.toggle("running", running);
  $("runs").setAttribute("aria-busy", String(running));
  for (const id of ["model", "rule"]) $(id).disabled = running;
}

// What is shown

function drawSoon() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => { drawing = false; draw(); });
}

function draw() {
  const look = {colour: colour(), theme: theme(), masks: masks()};
  panels.forEach(panel => panel.show(player.at, look));
  const {at, last, most} = player, none = last === 0;
  $("slider").max = String(most);
  $("slider").value = String(at);
  for (const id of ["slider", "play", "back", "forth"]) $(id).disabled = none;
  const spoken = place(known(), player);
  $("slider").setAttribute("aria-valuetext", spoken);
  $("where").textContent = none ? "no run yet" : `${at} / ${player.ended ? last : "…"}`;
  $("where").setAttribute("aria-label", spoken);
  $("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
  $("play").classList.toggle("playing", player.playing);
  if (begun && player.finished && !none) verdict(sentence(runs, things(kind())));
  else if (begun && !none) verdict(progress(known(), at));
}

function verdict(parts) {
  const text = parts.map(part => part.textContent ?? part).join("");
  if ($("verdict").textContent !== text) $("verdict").replaceChildren(...parts);
}

function speak(text, now = false) {
  if (!now && Date.now() - spoke < SPEAK_EVERY) return;
  spoke = Date.now();
  $("status").textContent = text;
}

function speakProgress() {
  const [run] = known(), {written, evaluation} = run.at(Infinity);
  speak(`Evaluation ${evaluation}, ${written} of ${run.masks} tokens written.`);
}

// Errors

// Where what the server calls by these names is typed in.
const FIELDS = {model: "model", prompt: "prompt", messages: "prompt", text: "prompt", rule: "rule",
  temperature: "temperature", seed: "seed", max_tokens: "length", block_length: "block"};

function showError(error) {
  $("error").textContent = error.message;
  $("error").hidden = false;
  speak("", true);
  if (error.status === 401) {
    $("key-field").hidden = false;
    $("key").focus();
    return;
  }
  const named = error.parameter === "rule" ? settings.named(error.message) ?? $("rule") : $(FIELDS[error.parameter]);
  if (named && !named.closest("[hidden]")) {
    named.closest("details")?.setAttribute("open", "");
    named.setAttribute("aria-invalid", "true");
    named.focus();
  }
}

function clearError() {
  $("error").hidden = true;
  $("error").textContent = "";
  for (const field of $("composer").querySelectorAll('[aria-invalid="true"]')) {
    if (!$("board").contains(field)) field.removeAttribute("aria-invalid");
  }
}

// Controls

$("settings").addEventListener("input", () => brief());
if (matchMedia("(max-width: 700px)").matches) $("how").open = false;
$("model").addEventListener("change", chooseModel);
$("rule").addEventListener("change", chooseRule);
$("examples").addEventListener("change", useExample);
$("length").addEventListener("input", () => idle());
$("compare").addEventListener("change", () => idle());
$("new-seed").addEventListener("click", newSeed);
$("play").addEventListener("click", () => player.toggle());
$("back").addEventListener("click", () => player.seek(player.at - 1));
$("forth").addEventListener("click", () => player.seek(player.at + 1));
$("slider").addEventListener("input", () => player.seek(Number($("slider").value)));
$("slider").addEventListener("keydown", event => {
  if (event.key !== " ") return;
  event.preventDefault();
  player.toggle();
});
$("speed").addEventListener("change", () => { player.speed = Number($("speed").value); });

async function open() {
  try {
    models = await getList("v1/models", key());
    rules = await getList("v1/rules", key());
  } catch (error) {
    showError(error);
    if (error.status === 401) $("key").addEventListener("change", () => { clearError(); open(); }, {once: true});
    return;
  }
  $("model").replaceChildren(...models.map(one => new Option(one.id, one.id)));
  fillRules($("rule"), rules);
  for (const id of ["model", "rule", "run"]) $(id).disabled = false;
  chooseRule();
  chooseModel();
}

onTheme(() => { legend(); drawSoon(); });
legend();
open();
