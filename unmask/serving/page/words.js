// What is said of runs: of the rule's, and of the one beside it that writes one token at a time.

const times = ratio => ratio >= 10 || Number.isInteger(ratio) ? ratio.toFixed(0) : ratio.toFixed(1);
const count = n => `${n} ${n === 1 ? "evaluation" : "evaluations"}`;

export function seconds(value) {
  return value === 0 ? "0" : value < 0.1 ? value.toFixed(3) : value < 10 ? value.toFixed(2) : value.toFixed(1);
}

function strong(text) {
  const node = document.createElement("strong");
  node.textContent = text;
  return node;
}

// Where the slider is.
export function place(runs, player) {
  const parts = runs.map((run, index) =>
    `${index ? "one at a time " : ""}${run.at(player.at).written} of ${run.masks} written`);
  return `evaluation ${player.at} of ${player.ended ? player.last : "…"}, ${parts.join(", ")}`;
}

export function progress(runs, evaluation) {
  const [written, other] = runs.map(run => run.at(evaluation).written);
  const beside = other === undefined ? "." : `, ${other} one at a time.`;
  return [`Evaluation ${evaluation}: ${written} ${written === 1 ? "token" : "tokens"} written${beside}`];
}

// What has come of it, in parts of which the most important is an element of its own.
export function sentence(runs, things) {
  const [run, other] = runs;
  if (!run?.end) return [""];
  const {nfe, finish_reason: reason} = run.end;
  if (reason === "stopped") return [`Stopped after ${count(nfe)}.`];
  if (!other?.end || other.end.finish_reason === "stopped") return [strong(count(nfe)), " of the model."];
  const same = run.end.text === other.end.text ? `Both ${things} are the same.` : `The ${things} differ.`;
  if (nfe === other.end.nfe) return [strong("As many evaluations"), ` as one at a time: ${nfe}. ${same}`];
  const fewer = nfe < other.end.nfe, ratio = fewer ? other.end.nfe / nfe : nfe / other.end.nfe;
  const found = `${times(ratio)} × ${fewer ? "fewer" : "more"} evaluations`;
  return [strong(found), ` than one at a time: ${nfe} instead of ${other.end.nfe}. ${same}`];
}

// The same for those who hear it.
export function summary(runs, result) {
  const told = runs.map((run, index) => {
    const {nfe, seconds: time} = run.end, {written} = run.at(Infinity);
    const cost = `${count(nfe)}, ${seconds(time)} seconds, ${written} tokens written`;
    return `${index ? "One at a time" : "Done"}: ${cost}.`;
  });
  return [...told, result].join(" ");
}
